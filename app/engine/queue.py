"""Queue: the rows that wait for a slot, whose turn it is, and for how long they wait."""

import heapq
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from app.engine.running_request import RunningRequest
from app.engine_client.errors import QueueFull

THROUGHPUT_MEMORY_SECONDS = 5.0  # seconds of work after which what happened counts 1/e in the throughput
MAX_ROWS_PER_FREE_PLACE = 8
"""How many rows a client may have waiting for each place that stays free, so that there is always room for another client,
however many fill the queue (Choudhury and Hahne 1998, dynamic queue length thresholds)."""

Rows = list[tuple[RunningRequest, list[int]]]  # requests, each with the numbers of its rows that are meant


@dataclass(slots=True, eq=False)
class _Row:
    request: RunningRequest
    number: int
    waits: bool = True


class _Share:
    """The rows of one client that wait, in two orders that take turns; each may still hold rows that have left."""

    def __init__(self) -> None:
        self.waiting = 0
        self.by_arrival: deque[_Row] = deque()
        self.by_deadline: list[tuple[float, int, int, _Row]] = []  # then by the row's number, then by arrival
        self._by_deadline_next = True

    def take(self) -> _Row:
        """The row whose turn it is; there must be one that waits."""
        while True:
            row = heapq.heappop(self.by_deadline)[3] if self._by_deadline_next else self.by_arrival.popleft()
            if row.waits:
                self._by_deadline_next = not self._by_deadline_next
                return row


class Queue:
    """Rows that wait for a slot.

    Clients take turns, row by row (``Request.client``), so none waits longer for its next row than all others together need for
    one each. A client's own rows leave in two orders that take turns: by arrival of the request, and by deadline, then by the
    row's number within its request. By the first the oldest request always gets on, whatever follows it; by the second urgent
    rows go first, and the first rows of a request pass by the later rows of a large one. As each order gives away half of the
    client's slots, nothing that is written into a request lets it starve another one.

    Args:
        max_rows: of one client; all together may have an eighth more.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._places = max_rows + math.ceil(max_rows / MAX_ROWS_PER_FREE_PLACE)
        self._shares: dict[str, _Share] = {}  # by client
        self._turns: deque[str] = deque()  # the clients in `_shares`, the one whose turn it is first
        self._by_deadline: list[tuple[float, int, int, _Row]] = []  # of all clients; rows that have a deadline
        self._rows: dict[int, list[_Row]] = {}  # by request; some may wait no more
        self._arrivals = count()
        self._waiting = 0
        self._rows_left = 0.0
        self._seconds_of_work = 0.0

    def __len__(self) -> int:
        return self._waiting

    @property
    def first_deadline(self) -> float:
        """No row's deadline is earlier; infinite where no row has one."""
        return self._by_deadline[0][0] if self._by_deadline else math.inf

    def add(self, request: RunningRequest) -> None:
        """Queue all rows of a request; ``QueueFull`` if not all of them may wait now."""
        if excess := self._excess(request):
            seconds = excess * self._seconds_of_work / self._rows_left if self._rows_left else 1.0
            raise QueueFull(self._waiting, self._waiting + request.rows - excess, seconds)
        arrival = next(self._arrivals)
        share = self._shares.get(request.client)
        if share is None:
            share = self._shares[request.client] = _Share()
            self._turns.append(request.client)
        rows = self._rows[request.number] = [_Row(request, number) for number in range(request.rows)]
        share.by_arrival.extend(rows)
        for number, (row, deadline) in enumerate(zip(rows, request.deadline, strict=True)):
            heapq.heappush(share.by_deadline, (deadline, number, arrival, row))
            if deadline < math.inf:
                heapq.heappush(self._by_deadline, (deadline, arrival, number, row))
        share.waiting += len(rows)
        self._waiting += len(rows)

    def take(self, max_rows: int) -> Rows:
        """Take the rows whose turn it is."""
        taken: list[_Row] = []
        size = min(max_rows, self._waiting)
        while len(taken) < size:
            client = self._turns.popleft()
            share = self._shares[client]
            if share.waiting:  # otherwise they were late or removed
                row = share.take()
                self._leave(row)
                taken.append(row)
            if share.waiting:
                self._turns.append(client)
            else:
                del self._shares[client]
        return self._grouped(taken)

    def take_late(self, now: float) -> Rows:
        """Take the rows whose deadline has passed."""
        late = []
        while self._by_deadline and self._by_deadline[0][0] <= now:
            row = heapq.heappop(self._by_deadline)[3]
            if row.waits:
                self._leave(row)
                late.append(row)
        return self._grouped(late)

    def remove(self, number: int) -> None:
        """Drop the rows of a request, if any of them wait."""
        rows = [row for row in self._rows.pop(number, []) if row.waits]
        for row in rows:
            self._leave(row)
        if rows:
            self._compact({rows[0].request.client})

    def record_throughput(self, rows: int, seconds: float) -> None:
        """Note that rows have left the slots in that many seconds of work; the throughput is an exponentially weighted mean."""
        fading = math.exp(-seconds / THROUGHPUT_MEMORY_SECONDS)
        self._rows_left = self._rows_left * fading + rows
        self._seconds_of_work = self._seconds_of_work * fading + seconds

    def _excess(self, request: RunningRequest) -> int:
        """How many rows must leave before all of a request's may wait."""
        before = self._shares[request.client].waiting if request.client in self._shares else 0
        own = before + request.rows
        free = self._places - self._waiting - request.rows  # once they wait
        # Only a client without waiting rows may take the last place. Each row that leaves is one less, and makes one place more.
        beyond = max(before - MAX_ROWS_PER_FREE_PLACE * free, own - MAX_ROWS_PER_FREE_PLACE * (free + 1))
        return max(own - self.max_rows, math.ceil(beyond / (1 + MAX_ROWS_PER_FREE_PLACE)), -free, 0)

    def _leave(self, row: _Row) -> None:
        row.waits = False
        self._waiting -= 1
        self._shares[row.request.client].waiting -= 1

    def _grouped(self, rows: Iterable[_Row]) -> Rows:
        """Rows that have left, by request."""
        numbers: dict[RunningRequest, list[int]] = {}
        for row in rows:
            numbers.setdefault(row.request, []).append(row.number)
        for request in numbers:
            if not any(row.waits for row in reversed(self._rows[request.number])):
                del self._rows[request.number]
        self._compact({request.client for request in numbers})
        return list(numbers.items())

    def _compact(self, clients: Iterable[str]) -> None:
        """A row stays in an order that did not serve it until its turn there; do not let those of some clients pile up."""
        for share in (self._shares[client] for client in clients if client in self._shares):
            if len(share.by_arrival) + len(share.by_deadline) > 4 * share.waiting + 64:
                share.by_arrival = deque(row for row in share.by_arrival if row.waits)
                share.by_deadline = _heap_of_waiting(share.by_deadline)
        if len(self._by_deadline) > 2 * self._waiting + 64:
            self._by_deadline = _heap_of_waiting(self._by_deadline)
        if len(self._turns) > 2 * self._waiting + 64:
            self._turns = deque(client for client in self._turns if self._shares[client].waiting)
            self._shares = {client: self._shares[client] for client in self._turns}


def _heap_of_waiting(heap: list[tuple[float, int, int, _Row]]) -> list[tuple[float, int, int, _Row]]:
    waiting = [entry for entry in heap if entry[3].waits]
    heapq.heapify(waiting)
    return waiting
