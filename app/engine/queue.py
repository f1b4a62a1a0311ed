"""WaitingRows: the queue, row by row."""

import heapq
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from app.engine.request import Job


@dataclass(slots=True, eq=False)
class _Row:
    job: Job
    number: int
    waits: bool = True


class WaitingRows:
    """Rows that wait for a slot, and whose turn it is.

    Rows with an earlier deadline go first. Among those of one deadline, or of none, two orders take turns: by arrival of
    the job, and by the row's number within its job. By the first the oldest job always gets on, however many small ones
    follow it; by the second the first rows of a job pass by the later rows of a large one, however large it is. Each order
    gives away half of the slots, so neither large jobs nor small ones can starve the other.
    """

    def __init__(self) -> None:
        self._by_arrival: list[tuple[float, int, int, _Row]] = []
        self._by_number: list[tuple[float, int, int, _Row]] = []
        self._rows: dict[int, list[_Row]] = {}  # by job; some may wait no more
        self._arrivals = count()
        self._waiting = 0
        self._by_arrival_next = True

    def __len__(self) -> int:
        return self._waiting

    @property
    def first_deadline(self) -> float:
        """No row's deadline is earlier; infinite where no row has one."""
        return self._by_arrival[0][0] if self._by_arrival else np.inf

    def add(self, job: Job) -> None:
        """Queue all rows of a job."""
        arrival = next(self._arrivals)
        rows = [_Row(job, number) for number in range(len(job.inputs))]
        self._rows[job.id] = rows
        for number, (row, deadline) in enumerate(zip(rows, job.deadline.tolist(), strict=True)):
            heapq.heappush(self._by_arrival, (deadline, arrival, number, row))
            heapq.heappush(self._by_number, (deadline, number, arrival, row))
        self._waiting += len(rows)

    def take(self, most: int) -> list[tuple[Job, NDArray[np.int64]]]:
        """Take the rows whose turn it is, at most so many, as jobs with the numbers of their rows."""
        taken: dict[int, tuple[Job, list[int]]] = {}
        for _ in range(min(most, self._waiting)):
            row = self._next(self._by_arrival if self._by_arrival_next else self._by_number)
            self._by_arrival_next = not self._by_arrival_next
            taken.setdefault(row.job.id, (row.job, []))[1].append(row.number)
        self._forget_served(taken)
        return [(job, np.array(numbers)) for job, numbers in taken.values()]

    def take_late(self, now: float) -> list[tuple[Job, NDArray[np.int64]]]:
        """Take the rows whose deadline has passed."""
        late: dict[int, tuple[Job, list[int]]] = {}
        while self._by_arrival and self._by_arrival[0][0] <= now:
            row = heapq.heappop(self._by_arrival)[3]
            if row.waits:
                self._leave(row)
                late.setdefault(row.job.id, (row.job, []))[1].append(row.number)
        self._forget_served(late)
        return [(job, np.array(numbers)) for job, numbers in late.values()]

    def remove(self, id: int) -> None:
        """Forget the rows of a job, if any of them wait."""
        for row in self._rows.pop(id, []):
            if row.waits:
                self._leave(row)
        self._compact()

    def _next(self, queue: list[tuple[float, int, int, _Row]]) -> _Row:
        while True:
            row = heapq.heappop(queue)[3]
            if row.waits:
                self._leave(row)
                return row

    def _leave(self, row: _Row) -> None:
        row.waits = False
        self._waiting -= 1

    def _forget_served(self, ids: dict[int, tuple[Job, list[int]]]) -> None:
        for id in ids:
            if not any(row.waits for row in reversed(self._rows[id])):
                del self._rows[id]
        self._compact()

    def _compact(self) -> None:
        """A row that one order has served stays in the other's heap until its turn; do not let those pile up."""
        for queue in (self._by_arrival, self._by_number):
            if len(queue) > 2 * self._waiting + 64:
                queue[:] = [entry for entry in queue if entry[3].waits]
                heapq.heapify(queue)
