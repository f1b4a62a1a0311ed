"""Queue: the rows that wait for a slot, whose turn it is, and for how long they wait."""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from app.engine.running_request import RunningRequest
from app.engine_client.errors import QueueFull

THROUGHPUT_MEMORY_SECONDS = 5.0  # seconds of work after which what happened counts 1/e in the throughput

Rows = list[tuple[RunningRequest, NDArray[np.int64]]]  # requests, each with the numbers of its rows that are meant


@dataclass(slots=True, eq=False)
class _Row:
    request: RunningRequest
    number: int
    waits: bool = True


class Queue:
    """Rows that wait for a slot.

    Rows with an earlier deadline go first. Among those of one deadline, or of none, two orders take turns: by arrival of the
    request, and by the row's number within its request. By the first the oldest request always gets on, however many small ones
    follow it; by the second the first rows of a request pass by the later rows of a large one, however large it is. Each order
    gives away half of the slots, so neither large requests nor small ones can starve the other.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._by_arrival: list[tuple[float, int, int, _Row]] = []
        self._by_number: list[tuple[float, int, int, _Row]] = []
        self._rows: dict[int, list[_Row]] = {}  # by request; some may wait no more
        self._arrivals = count()
        self._waiting = 0
        self._by_arrival_next = True
        self._rows_left = 0.0
        self._seconds_of_work = 0.0

    def __len__(self) -> int:
        return self._waiting

    @property
    def first_deadline(self) -> float:
        """No row's deadline is earlier; infinite where no row has one."""
        return self._by_arrival[0][0] if self._by_arrival else np.inf

    def add(self, request: RunningRequest) -> None:
        """Queue all rows of a request; ``QueueFull`` if not all of them may wait now."""
        excess = self._waiting + request.rows - self.max_rows
        if excess > 0:
            seconds = excess * self._seconds_of_work / self._rows_left if self._rows_left else 1.0
            raise QueueFull(self._waiting, self.max_rows, seconds)
        arrival = next(self._arrivals)
        rows = self._rows[request.number] = [_Row(request, number) for number in range(request.rows)]
        for number, (row, deadline) in enumerate(zip(rows, request.deadline.tolist(), strict=True)):
            heapq.heappush(self._by_arrival, (deadline, arrival, number, row))
            heapq.heappush(self._by_number, (deadline, number, arrival, row))
        self._waiting += len(rows)

    def take(self, max_rows: int) -> Rows:
        """Take the rows whose turn it is."""
        taken: list[_Row] = []
        size = min(max_rows, self._waiting)
        while len(taken) < size:
            row = heapq.heappop(self._by_arrival if self._by_arrival_next else self._by_number)[3]
            if row.waits:
                self._leave(row)
                taken.append(row)
                self._by_arrival_next = not self._by_arrival_next
        return self._grouped(taken)

    def take_late(self, now: float) -> Rows:
        """Take the rows whose deadline has passed."""
        late = []
        while self._by_arrival and self._by_arrival[0][0] <= now:
            row = heapq.heappop(self._by_arrival)[3]
            if row.waits:
                self._leave(row)
                late.append(row)
        return self._grouped(late)

    def remove(self, number: int) -> None:
        """Drop the rows of a request, if any of them wait."""
        for row in self._rows.pop(number, []):
            if row.waits:
                self._leave(row)
        self._compact()

    def record_throughput(self, rows: int, seconds: float) -> None:
        """Note that rows have left the slots in that many seconds of work; the throughput is an exponentially weighted mean."""
        fading = math.exp(-seconds / THROUGHPUT_MEMORY_SECONDS)
        self._rows_left = self._rows_left * fading + rows
        self._seconds_of_work = self._seconds_of_work * fading + seconds

    def _leave(self, row: _Row) -> None:
        row.waits = False
        self._waiting -= 1

    def _grouped(self, rows: Iterable[_Row]) -> Rows:
        """Rows that have left, by request."""
        numbers: dict[RunningRequest, list[int]] = {}
        for row in rows:
            numbers.setdefault(row.request, []).append(row.number)
        for request in numbers:
            if not any(row.waits for row in reversed(self._rows[request.number])):
                del self._rows[request.number]
        self._compact()
        return [(request, np.array(own)) for request, own in numbers.items()]

    def _compact(self) -> None:
        """A row that one order has served stays in the other's heap until its turn; do not let those pile up."""
        for order in (self._by_arrival, self._by_number):
            if len(order) > 2 * self._waiting + 64:
                order[:] = [entry for entry in order if entry[3].waits]
                heapq.heapify(order)
