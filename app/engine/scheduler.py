"""Scheduler: admit, advance, retire."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.batch import RunningBatch
from app.engine.lane import Lane
from app.engine.queue import Queue
from app.engine.running_request import RowResult, RunningRequest, check
from app.engine.trace import trace
from app.engine.warm_starts import WarmStarts
from app.engine_client.messages import Iteration, Request, Result, Timings
from jfb import Status
from jfb.onnx.one_row import Lived
from jfb.rows import to_device

# A lane, and rows of it that have ended; their logits; request, row and result of each; when they ended and were read out.
_Ended = tuple[Lane, NDArray[np.intp], NDArray[np.floating], Iterator[tuple[int, int, RowResult]], float, float]

# Rows, and their injections.
_Injected = tuple[list[tuple[RunningRequest, int]], Tensor]

log = structlog.get_logger(__name__)


class Started(NamedTuple):
    """A row that ``live`` has advanced, but that has not ended."""

    lived: Lived
    at: float


class Scheduler:
    """Iterates the rows of many requests in one batch that is reshaped between iterations.

    A row enters as soon as a slot is free, leaves as soon as it has ended, and computes the same as with ``jfb.predict``, however
    full the batch is. The scheduler has no thread and no I/O, and decides nothing by a clock of its own: ``tick`` is given the
    time. Every request that is submitted comes out of ``tick`` exactly once, unless it is cancelled.

    Args:
        warm_starts: remembers where the rows of a session ended; None starts every row from nothing.
        clock: what the requests' ``timings`` are read from.

    Attributes:
        ticks, step_evaluations, iterations, wasted_iterations, rows_ended, batch_sizes: as in ``messages.Counters``.
    """

    def __init__(
        self,
        batch: RunningBatch,
        *,
        max_waiting_rows: int,
        warm_starts: WarmStarts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ticks = self.step_evaluations = self.iterations = self.rows_ended = 0
        self.batch_sizes = [0] * ((batch.slots - 1).bit_length() + 1)
        self.input_shape = batch.input_shape
        self.slots = batch.slots
        self._batch = batch
        self._warm_starts = WarmStarts(0, 0) if warm_starts is None else warm_starts
        self._clock = clock
        self._requests: dict[int, RunningRequest] = {}
        self._queue = Queue(max_waiting_rows)
        self._abandoned: set[int] = set()  # not in _requests any more, though rows of theirs may be in slots
        self._streamed: set[int] = set()
        self._streamed_iterations: list[tuple[RunningRequest, Iteration]] = []
        self._unanswered: list[_Ended] = []
        self._finished: list[RunningRequest] = []
        self._injected: _Injected | None = None  # what is next to get slots, and has left the queue
        self._started: tuple[RunningRequest, Lived] | None = None  # what needs a slot to go on; ``live`` starts no other
        self._last_tick: float | None = None

    @property
    def active_rows(self) -> int:
        return self._batch.active

    @property
    def wasted_iterations(self) -> int:
        return self._batch.wasted_iterations

    @property
    def waiting_rows(self) -> int:
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether there is anything for ``tick`` to do."""
        return bool(self._requests or self._started is not None or self.active_rows)

    def live(self, request: Request) -> Result | Started | None:
        """Inject, iterate and read out a row that is alone in one call, where there is such a call.

        Returns:
            The result; if the row has not ended by the time to look at what has arrived, what it goes on with; None if nothing
            was computed, as there is no such call, or the row is not alone. Unless it is a result, the request must be submitted.

        Raises:
            ValueError: as ``RunningRequest``.
        """
        if (
            self.busy
            or not self._batch.has_one_row(request.solver)
            or request.streamed
            or request.stop == "label"
            or request.session is not None
            or request.rows != 1
        ):
            return None
        check(request, self.input_shape)
        (tolerance,), (cap,), (deadline,) = request.tolerance, request.max_iterations, request.deadline
        started_at = self._clock()
        if deadline is not None and deadline <= started_at:
            return None
        inputs = np.frombuffer(request.inputs, "<f4").reshape(1, *self.input_shape)
        lived = self._batch.live(inputs, request.solver, tolerance, cap)
        if lived is None:
            return None
        ended_at = self._clock()
        self._count(1, lived.iterations)
        capped = lived.iterations >= cap
        if not (capped or lived.converged) and math.isfinite(lived.residual):
            return Started(lived, started_at)
        self.iterations += lived.iterations
        self.rows_ended += 1
        self._queue.record_throughput(1, ended_at - started_at)
        status = _status(lived.residual, lived.converged, False, capped)
        # What injection and readout took counts as iteration.
        timings = Timings(started_at, started_at, started_at, ended_at, ended_at)
        return Result(request.id, lived.logits.tobytes(), [lived.iterations], [lived.residual], [status], timings)

    def submit(self, request: RunningRequest, started: Started | None = None) -> None:
        """Queue a request, or have it go on where ``live`` has stopped.

        ``QueueFull`` if not all rows may wait now, ``ValueError`` if its solver or stop is not offered.
        """
        solver, solvers = request.solver, self._batch.solvers
        if solver is not None and solver not in solvers:
            raise ValueError(f"solver: must be one of {', '.join(solvers)} (got {solver!r})")
        if request.stop == "label" and not self._batch.offers_label_stop(solver):
            raise ValueError(f"stop: must be 'tolerance' with solver {solver or next(iter(solvers))} (got 'label')")
        if started is None:
            self._queue.add(request)
            request.timings.submitted = self._clock()
        else:
            self._started = request, started.lived
            request.timings.submitted = request.timings.admitted = request.timings.injected = started.at
        request.logits = np.full((request.rows, self._batch.classes), np.nan)
        self._requests[request.number] = request
        if request.streamed:
            self._streamed.add(request.number)

    def cancel(self, number: int) -> RunningRequest | None:
        """Drop a request, and return it, if it is still here; its rows leave before the next iteration."""
        if request := self._requests.pop(number, None):
            self._queue.remove(number)
            self._abandoned.add(number)
            self._streamed.discard(number)
        return request

    @torch.inference_mode()
    def tick(self, now: float) -> list[RunningRequest]:
        """Retire the rows that have ended, admit waiting ones, advance all; return what has finished or failed.

        Rows are advanced until one of them has ended, or until it is time to look at what has arrived; once if any is streamed,
        or has just been advanced by ``live``.

        An error in the network does not come out of here: it fails the request whose rows it belongs to. Only a lost device does,
        as ``torch.AcceleratorError``. ``now`` is in seconds of the clock that deadlines refer to.
        """
        if self._queue.first_deadline <= now:
            for request, late in self._queue.take_late(now):
                request.expire(late)
                self._answer_from_start(request, late)
                self.rows_ended += len(late)
                self._finish(request, now)
        retired = self._retire(now)
        once = bool(self._streamed) or self._started is not None
        self._admit(now)
        for rows, times in self._batch.advance(self._fail, once=once):
            self._count(rows, times)
        while self._unanswered:
            self._answer(now, self._unanswered.pop(0))
        if self._batch.in_blocks and self._injected is None:
            self._inject_ahead(retired)
        if self._last_tick is not None:
            self._queue.record_throughput(retired, now - self._last_tick)
        self._last_tick = now if self.busy else None
        finished, self._finished = self._finished, []
        return finished

    def _count(self, rows: int, times: int) -> None:
        self.ticks += times
        self.step_evaluations += rows * times
        self.batch_sizes[(rows - 1).bit_length()] += times

    def take_iterations(self) -> list[tuple[RunningRequest, Iteration]]:
        """The iterations of streamed requests that the last tick saw the end of."""
        iterations, self._streamed_iterations = self._streamed_iterations, []
        return iterations

    def _retire(self, now: float) -> int:
        """Free the slots of the rows that have ended or that were cancelled; return how many did."""
        abandoned, self._abandoned = list(self._abandoned), set()
        retired = 0
        for lane in self._batch.active_lanes:
            residual = lane.wait_for_residual()
            if self._streamed:
                self._report(lane, residual)
            ended = lane.ended(residual, now)
            if abandoned:
                ended |= np.isin(lane.table.request, abandoned)
            if ended.any():
                rows = np.flatnonzero(ended)
                self._read_out(lane, rows, residual[rows], now)
                retired += len(rows)
            leaving = ended if lane.full_precision is None else ended | lane.hand_over(lane.full_precision, residual, ended, now)
            if leaving.any():
                lane.table.remove(leaving)
        return retired

    def _read_out(self, lane: Lane, rows: NDArray[np.intp], residual: NDArray[np.floating], now: float) -> None:
        table = lane.table
        iterations, margin, bound = table.iterations[rows], table.margin[rows], table.bound[rows]
        converged, capped = residual <= table.tolerance[rows], iterations >= table.max_iterations[rows]
        self.iterations += int(iterations.sum())
        self.rows_ended += len(rows)
        ended_at = self._clock()
        logits = lane.read_out(rows, self._fail)
        read_out_at = self._clock()
        status = map(_status, residual.tolist(), converged.tolist(), (margin > bound).tolist(), capped.tolist())
        results = zip(iterations.tolist(), residual.tolist(), status, margin.tolist(), bound.tolist(), strict=True)
        numbers, own_rows = table.request[rows].tolist(), table.row[rows].tolist()
        ended = lane, rows, logits, zip(numbers, own_rows, results, strict=True), ended_at, read_out_at
        if lane.in_blocks and not any(self._requests[number].session for number in numbers if number in self._requests):
            self._unanswered.append(ended)  # while the device computes the next block
        else:  # rows of a session that are admitted now start where these ended
            self._answer(now, ended)

    def _answer(self, now: float, ended: _Ended) -> None:
        """Give requests the rows that have ended."""
        lane, rows, logits, results, ended_at, read_out_at = ended
        for k, (number, row, result) in enumerate(results):
            if request := self._requests.get(number):
                request.end(row, logits[k], result)
                if request.session is not None:
                    request.keep(row, lane.states(rows[k : k + 1])[0])
                request.timings.ended, request.timings.read_out = ended_at, read_out_at
                self._finish(request, now)

    def _report(self, lane: Lane, residual: NDArray[np.floating]) -> None:
        """Note the last iteration of the streamed requests."""
        table = lane.table
        streamed = np.flatnonzero(np.isin(table.request, list(self._streamed)))
        if not len(streamed):
            return
        numbers = table.request[streamed]
        logits = lane.read_out(streamed, self._fail)
        for number in dict.fromkeys(numbers.tolist()):
            if request := self._requests.get(number):  # reading out may have failed it
                own = numbers == number
                counts, residuals, rows = (values[streamed[own]].tolist() for values in (table.iterations, residual, table.row))
                pictures = trace(lane.states(streamed[own]), counts) if request.with_states else None
                iteration = Iteration(request.id, logits[own].astype("<f4").tobytes(), counts, residuals, rows, pictures)
                self._streamed_iterations.append((request, iteration))

    def _admit(self, now: float) -> None:
        """Move rows that go on, and waiting ones, into free slots."""
        if self._started is not None:
            (request, lived), self._started = self._started, None
            if request.number in self._requests:
                self._batch.go_on(lived, request.solver, **_host([(request, 0)]))
            else:  # cancelled
                self.iterations += lived.iterations
                self.rows_ended += 1
        for rows, injection in self._next(self._batch.slots - self._batch.active):
            point = self._batch.initial_state(injection, _numbers(rows), self._fail)
            if any(request.session is not None for request, _ in rows):
                point = self._warm(point, rows, now)
            self._batch.admit([request.solver for request, _ in rows], point, injection, **_host(rows))

    def _next(self, free: int) -> Iterator[_Injected]:
        """Take waiting rows for the free slots: those that were injected ahead, and then others."""
        if self._injected is not None and free:
            rows, injection = self._injected
            here = [k for k, (request, _) in enumerate(rows) if request.number in self._requests]
            if len(here) < len(rows):  # others have been cancelled
                rows, injection = [rows[k] for k in here], injection[to_device(np.array(here, np.intp), injection.device)]
            self._injected = (rows[free:], injection[free:]) if len(rows) > free else None
            if rows:
                yield rows[:free], injection[:free]
            free -= len(rows[:free])
        if free and len(self._queue):
            yield self._inject(free)

    def _inject(self, most: int) -> _Injected:
        """Take rows from the queue, which must not be empty, and inject them."""
        admitted = self._queue.take(most)
        rows = [(request, row) for request, own in admitted for row in own]
        admitted_at = self._clock()
        inputs = np.concatenate([request.inputs[row : row + 1] for request, row in rows])
        injection = self._batch.inject(inputs, _numbers(rows), self._fail)
        injected_at = self._clock()
        for timings in (request.timings for request, _ in admitted if request.timings.admitted is None):
            timings.admitted, timings.injected = admitted_at, injected_at
        return rows, injection

    def _inject_ahead(self, retired: int) -> None:
        """Inject waiting rows while the device computes a block: as many as have just ended, as about as many will end in it."""
        if retired and len(self._queue):
            rows, injection = self._inject(retired)
            self._injected = rows, injection.clone()  # a backend may use its memory again

    def _warm(self, point: Tensor, rows: list[tuple[RunningRequest, int]], now: float) -> Tensor:
        """Replace the starts of the rows whose session is remembered."""
        point = point.clone()
        for k, (request, row) in enumerate(rows):
            if request.session is not None and request.start is None:
                request.start = self._warm_starts.recall(request.session, request.rows, now)
            if request.start is not None:
                point[k] = request.start[row]
        return point

    def _answer_from_start(self, request: RunningRequest, rows: list[int]) -> None:
        """Take the logits of rows without an iteration from a learned start, if there is one that can be computed."""
        for begin in range(0, len(rows) if self._batch.has_learned_start else 0, self._batch.slots):
            some = rows[begin : begin + self._batch.slots]
            try:
                request.logits[some] = self._batch.first_logits(request.inputs[some])
            except torch.AcceleratorError:
                raise
            except Exception as error:
                log.warning("learned start failed", error=repr(error), rows=len(some))

    def _finish(self, request: RunningRequest, now: float) -> None:
        """Hand a request out if all of its rows have ended."""
        if not request.finished:
            return
        del self._requests[request.number]
        self._streamed.discard(request.number)
        self._finished.append(request)
        if request.session is not None and request.fixed_points is not None:
            if Status.DIVERGED in request.status:
                self._warm_starts.forget(request.session)
            elif all(request.iterations):
                self._warm_starts.keep(request.session, request.fixed_points, now)

    def _fail(self, number: int, reason: str) -> None:
        """Hand a request out that cannot be computed."""
        if request := self.cancel(number):
            request.failure = reason
            self._finished.append(request)


def _numbers(rows: Sequence[tuple[RunningRequest, int]]) -> NDArray[np.int64]:
    return np.array([request.number for request, _ in rows])


def _host(rows: Sequence[tuple[RunningRequest, int]]) -> dict[str, list[Any]]:
    """What the slot table keeps of rows on the host."""
    return {
        "request": [request.number for request, _ in rows],
        "row": [row for _, row in rows],
        "tolerance": [request.tolerance[row] for request, row in rows],
        "max_iterations": [request.max_iterations[row] for request, row in rows],
        "deadline": [request.deadline[row] for request, row in rows],
        "by_label": [request.stop == "label" for request, _ in rows],
    }


def _status(residual: float, converged: bool, stable: bool, capped: bool) -> Status:
    if not math.isfinite(residual):
        return Status.DIVERGED
    if converged:
        return Status.CONVERGED
    if stable:
        return Status.LABEL_STABLE
    return Status.MAX_ITERATIONS if capped else Status.DEADLINE
