"""Throughput: how fast rows leave."""

import math

MEMORY = 5.0
"""Seconds after which what happened counts 1/e."""


class Throughput:
    """An exponentially weighted mean of rows per second over the time in which there was work."""

    def __init__(self) -> None:
        self._rows = 0.0
        self._seconds = 0.0

    def count(self, rows: int, seconds: float) -> None:
        """Rows that left in the last so many seconds of work."""
        fading = math.exp(-seconds / MEMORY)
        self._rows = self._rows * fading + rows
        self._seconds = self._seconds * fading + seconds

    def seconds_for(self, rows: int) -> float:
        """How long so many rows take; one second as long as nothing is known."""
        return rows * self._seconds / self._rows if self._rows else 1.0
