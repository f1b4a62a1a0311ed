"""WarmStarts: where the iteration ended for clients that come back with similar inputs."""

from torch import Tensor


class WarmStarts:
    """Remembers the last fixed points of each session, so that its next rows start there and not from nothing.

    A contraction has one fixed point, and finds it from anywhere: a start that is near saves iterations and changes nothing
    else. Memory is bounded: a session is forgotten after some seconds without use, and those that were not used for longest go
    first when all together exceed ``max_bytes``; one that is larger by itself is not kept.
    """

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._kept: dict[str, tuple[Tensor, float]] = {}  # with the time of its expiry, in the order of that
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def recall(self, session: str, rows: int, now: float) -> Tensor | None:
        """The fixed points ``[rows, *state_shape]`` that the session ended with; None if it had another number of rows."""
        self._expire(now)
        points, _ = self._kept.get(session, (None, 0.0))
        return points if points is not None and len(points) == rows else None

    def keep(self, session: str, points: Tensor, now: float) -> None:
        """Remember fixed points instead of the session's earlier ones."""
        self._expire(now)
        self.forget(session)
        if points.nbytes > self._max_bytes:
            return
        self._kept[session] = points, now + self._seconds
        self._bytes += points.nbytes
        while self._bytes > self._max_bytes:
            self.forget(next(iter(self._kept)))

    def forget(self, session: str) -> None:
        """Let the session's next rows start from nothing."""
        if session in self._kept:
            self._bytes -= self._kept.pop(session)[0].nbytes

    def _expire(self, now: float) -> None:
        while self._kept and next(iter(self._kept.values()))[1] <= now:
            self.forget(next(iter(self._kept)))
