"""Engine: admit, iterate, retire."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.batch import RunningBatch
from app.engine.isolation import shielded
from app.engine.lane import Lane
from app.engine.queue import WaitingRows
from app.engine.request import Job, Progress
from app.engine.throughput import Throughput
from app.engine.warm_starts import Sessions
from app.engine_client.errors import QueueFull
from jfb import Status


class Engine:
    """Iterates the rows of many jobs in batches that are reshaped between iterations.

    A row enters as soon as a slot is free, leaves as soon as it has ended, and computes the same as with ``jfb.predict``,
    whoever shares the batch. The engine has no clock, no thread and no I/O: whoever calls ``tick`` tells the time. Every
    job that is submitted comes out of ``tick`` exactly once, unless it is cancelled.

    Args:
        batches: one a device, of the same network and with the same solvers; they share one queue.
        max_waiting_rows: how many rows may wait for a slot.
        sessions: remembers where the rows of a session ended; nobody does if None.
        clock: what the jobs' ``moments`` are read from. Nothing is decided by it: that is what ``now`` is for.

    Attributes:
        input_shape: of one row.
        max_waiting_rows: the argument.
        ticks, step_evaluations, iterations, rows_ended, batch_sizes: as in ``messages.Counters``.
    """

    def __init__(
        self,
        batches: Sequence[RunningBatch],
        *,
        max_waiting_rows: int,
        sessions: Sessions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ticks = 0
        self.step_evaluations = 0
        self.iterations = 0
        self.rows_ended = 0
        self.batch_sizes = [0] * (max((batch.slots - 1).bit_length() for batch in batches) + 1)
        self.input_shape = batches[0].input_shape
        self.max_waiting_rows = max_waiting_rows
        self._batches = list(batches)
        self._sessions = Sessions(0, 0) if sessions is None else sessions
        self._clock = clock
        self._jobs: dict[int, Job] = {}
        self._waiting = WaitingRows()
        self._abandoned: set[int] = set()  # jobs that nobody waits for, though rows of theirs may be in slots
        self._watched: set[int] = set()
        self._progress: list[Progress] = []
        self._finished: list[Job] = []
        self._throughput = Throughput()
        self._last_tick: float | None = None

    @property
    def slots(self) -> int:
        return sum(batch.slots for batch in self._batches)

    @property
    def active_rows(self) -> int:
        return sum(batch.active for batch in self._batches)

    @property
    def waiting_rows(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether there is anything for ``tick`` to do."""
        return bool(self._jobs or self.active_rows)

    def submit(self, job: Job) -> None:
        """Queue a job; whose rows are admitted when is what ``WaitingRows`` says.

        Raises:
            QueueFull: if not all of its rows may wait now.
            ValueError: if its inputs are not of the network's shape, or it wants a solver or a stop that is not offered.
        """
        rows = len(job.inputs)
        if job.inputs.shape[1:] != self.input_shape:
            raise ValueError(f"inputs: expected rows of shape {list(self.input_shape)}, got {list(job.inputs.shape[1:])}")
        solvers = self._batches[0].solvers
        if job.solver is not None and job.solver not in solvers:
            raise ValueError(f"solver: expected one of {', '.join(solvers)}, got {job.solver!r}")
        if job.stop == "label" and self._batches[0].lane(job.solver, 1, by_label=True).label_stop is None:
            raise ValueError(f"stop: expected 'tolerance' with solver {job.solver or next(iter(solvers))}, got 'label'")
        excess = self.waiting_rows + rows - self.max_waiting_rows
        if excess > 0:
            raise QueueFull(self.waiting_rows, self.max_waiting_rows, self._throughput.seconds_for(excess))
        job.logits = np.full((rows, self._batches[0].classes), np.nan)
        job.moments.submitted = self._clock()
        self._jobs[job.id] = job
        self._waiting.add(job)
        if job.watched:
            self._watched.add(job.id)

    def cancel(self, id: int) -> None:
        """Forget a job, if it is still here; its rows leave before the next iteration."""
        self._abandon(id)

    @torch.inference_mode()
    def tick(self, now: float) -> list[Job]:
        """Retire the rows that have ended, admit waiting ones, iterate all once.

        An error in the network does not come out of here: it fails the job whose rows it belongs to.

        Args:
            now: seconds, of the clock that deadlines refer to.

        Returns:
            The jobs that have finished or failed.

        Raises:
            torch.AcceleratorError: if the device is lost, and with it everything that was on it.
        """
        self._give_up_waiting(now)
        left = 0
        abandoned, self._abandoned = self._abandoned, set()
        for batch in self._batches:  # while the host sees to one, the devices of the others work
            for lane in batch.lanes:
                if lane.active:
                    left += self._retire(batch, lane, abandoned, now)
            self._admit(batch, now)
            self._iterate(batch)
        if self._last_tick is not None:
            self._throughput.count(left, now - self._last_tick)
        self._last_tick = now if self.busy else None
        finished, self._finished = self._finished, []
        return finished

    def take_progress(self) -> list[Progress]:
        """What the last tick found the iteration before to have come to, for the jobs that are watched."""
        progress, self._progress = self._progress, []
        return progress

    def _retire(self, batch: RunningBatch, lane: Lane, abandoned: set[int], now: float) -> int:
        table = lane.table
        moved = lane.look()
        if self._watched:
            self._report(lane, moved)
        ended = lane.ended(moved, now)
        if abandoned:
            ended |= np.isin(table.job, list(abandoned))
        ended = lane.leaving(ended)
        if abandoned:  # in lockstep they may have to stay for now, and must not be waited for when the others are done
            self._abandoned |= abandoned.intersection(table.job[~ended].tolist())
        leaving = np.flatnonzero(ended)
        if len(leaving):
            self._read_out(lane, leaving, moved, now)
        if lane.exact is not None:
            ended = ended | lane.hand_over(moved, ended, now)
        if ended.any():
            table.remove(ended)
        return len(leaving)

    def _read_out(self, lane: Lane, leaving: NDArray[np.intp], moved: NDArray[np.floating], now: float) -> None:
        table = lane.table
        jobs, rows, moved, iterations = table.job[leaving], table.row[leaving], moved[leaving], table.iterations[leaving]
        converged, capped = moved <= table.tolerance[leaving], iterations >= table.max_iterations[leaving]
        margin, bound = table.margin[leaving], table.bound[leaving]
        ended_at = self._clock()
        images, logits = lane.read_out(leaving, self._fail)
        read_out_at = self._clock()
        self.iterations += int(iterations.sum())
        self.rows_ended += len(leaving)
        status = map(_status, moved.tolist(), converged.tolist(), (margin > bound).tolist(), capped.tolist())
        facts = (jobs.tolist(), rows.tolist(), iterations.tolist(), moved.tolist(), status, margin.tolist(), bound.tolist())
        for k, (id, row, *end) in enumerate(zip(*facts, strict=True)):
            if job := self._jobs.get(id):
                job.end(row, logits[k], *end)
                job.moments.ended, job.moments.read_out = ended_at, read_out_at
                if job.session is not None:
                    job.keep(row, images[k])
                self._deliver(job, now)

    def _report(self, lane: Lane, moved: NDArray[np.floating]) -> None:
        table = lane.table
        watched = np.flatnonzero(np.isin(table.job, list(self._watched)))
        if not len(watched):
            return
        jobs = table.job[watched]
        _, logits = lane.read_out(watched, self._fail)
        for id in dict.fromkeys(jobs.tolist()):
            own = np.flatnonzero(jobs == id)
            rows, iterations, residuals = (values[watched[own]].tolist() for values in (table.row, table.iterations, moved))
            self._progress.append(Progress(id, rows, iterations, residuals, logits[own]))

    def _give_up_waiting(self, now: float) -> None:
        if now < self._waiting.first_deadline:
            return
        for job, rows in self._waiting.take_late(now):
            job.give_up(rows)
            self.rows_ended += len(rows)
            self._deliver(job, now)

    def _admit(self, batch: RunningBatch, now: float) -> None:
        if not len(self._waiting):
            return
        joining = self._waiting.take(batch.free)
        if not joining:
            return

        def gather(values_of: Callable[[Job], NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate([values_of(job)[rows] for job, rows in joining])

        jobs = np.repeat([job.id for job, _ in joining], [len(rows) for _, rows in joining])
        caps = gather(lambda job: job.max_iterations)
        admitted_at = self._clock()
        inputs = torch.from_numpy(gather(lambda job: job.inputs)).to(batch.backend.device, batch.backend.dtype)
        some = batch.lanes[0].table
        injection = shielded(batch.backend.inject, some.injection, jobs, self._fail, inputs)
        injected_at = self._clock()
        for job, _ in joining:
            if job.moments.admitted is None:
                job.moments.admitted, job.moments.injected = admitted_at, injected_at
        point = shielded(batch.backend.initial_state, some.point, jobs, self._fail, injection)
        if any(job.session is not None for job, _ in joining):
            point = self._warm(point, joining, now)
        whose = [job for job, rows in joining for _ in rows]
        by_label = np.array([job.stop == "label" for job in whose])
        batch.admit(
            [batch.lane(job.solver, *limits) for job, *limits in zip(whose, caps.tolist(), by_label.tolist(), strict=True)],
            point,
            injection,
            job=jobs,
            row=np.concatenate([rows for _, rows in joining]),
            tolerance=gather(lambda job: job.tolerance),
            max_iterations=caps,
            by_label=by_label,
            deadline=gather(lambda job: job.deadline),
        )

    def _warm(self, point: Tensor, joining: list[tuple[Job, NDArray[np.int64]]], now: float) -> Tensor:
        """Replace the starts of the rows whose session is remembered."""
        point = point.clone()
        begin = 0
        for job, rows in joining:
            if job.session is not None and job.start is None:
                job.start = self._sessions.recall(job.session, len(job.inputs), now)
            if job.start is not None:
                point[begin : begin + len(rows)] = job.start[torch.from_numpy(rows)]
            begin += len(rows)
        return point

    def _iterate(self, batch: RunningBatch) -> None:
        for rows in batch.iterate(self._fail):
            self.ticks += 1
            self.step_evaluations += rows
            self.batch_sizes[(rows - 1).bit_length()] += 1

    def _fail(self, id: int, reason: str) -> None:
        if job := self._abandon(id):
            job.failure = reason
            self._finished.append(job)

    def _deliver(self, job: Job, now: float) -> None:
        if job.finished:
            del self._jobs[job.id]
            self._watched.discard(job.id)
            self._finished.append(job)
            if job.session is not None and job.fixed_points is not None:
                if Status.DIVERGED in job.status:
                    self._sessions.forget(job.session)
                elif all(job.iterations):
                    self._sessions.keep(job.session, job.fixed_points, now)

    def _abandon(self, id: int) -> Job | None:
        job = self._jobs.pop(id, None)
        if job is not None:
            self._waiting.remove(id)
            self._abandoned.add(id)
            self._watched.discard(id)
        return job


def _status(movement: float, converged: bool, stable: bool, capped: bool) -> Status:
    if not math.isfinite(movement):
        return Status.DIVERGED
    if converged:
        return Status.CONVERGED
    if stable:
        return Status.LABEL_STABLE
    return Status.MAX_ITERATIONS if capped else Status.DEADLINE
