"""Engine: admit, iterate, retire."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.backends import Backend
from app.engine.errors import QueueFull
from app.engine.job import Job, Progress
from app.engine.sessions import Sessions
from app.engine.slots import SlotTable
from app.engine.throughput import Throughput
from jfb import ResidualNorm, Status, residual
from jfb.solvers import SOLVERS, Solver

log = structlog.get_logger(__name__)

Batching = Literal["iteration", "lockstep"]


class Engine:
    """Iterates the rows of many jobs as one batch that is reshaped between iterations.

    A row enters as soon as a slot is free, leaves as soon as it has ended, and computes the same as with ``jfb.predict``,
    whoever shares the batch. The engine has no clock, no thread and no I/O: whoever calls ``tick`` tells the time. Every
    job that is submitted comes out of ``tick`` exactly once, unless it is cancelled.

    Args:
        backend: computes the network.
        solver: proposes the next points.
        residual_norm: how movement is measured.
        input_shape: of one row.
        slots: size of the largest batch. It is tried out at once, so that what does not fit into memory fails here.
        max_waiting_rows: how many rows may wait for a slot.
        batching: ``iteration`` is the above. ``lockstep`` is what servers of networks of fixed depth do, to be compared
            with: a batch starts when the one before has ended, and ends as a whole when its worst row has ended at its
            strictest tolerance and largest cap.
        sessions: remembers where the rows of a session ended; nobody does if None.
        clock: what the jobs' ``moments`` are read from. Nothing is decided by it: that is what ``now`` is for.

    Attributes:
        input_shape, max_waiting_rows: the arguments.
        ticks, step_evaluations, iterations, rows_ended, batch_sizes: as in ``messages.Counters``.
    """

    def __init__(
        self,
        backend: Backend,
        solver: Solver,
        residual_norm: ResidualNorm,
        input_shape: tuple[int, ...],
        *,
        slots: int,
        max_waiting_rows: int,
        batching: Batching = "iteration",
        sessions: Sessions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ticks = 0
        self.step_evaluations = 0
        self.iterations = 0
        self.rows_ended = 0
        self.batch_sizes = [0] * ((slots - 1).bit_length() + 1)
        self.max_waiting_rows = max_waiting_rows
        self._sessions = Sessions(0, 0) if sessions is None else sessions
        self._clock = clock
        self._backend = backend
        self._solver = solver
        self._residual_norm = residual_norm
        self.input_shape = input_shape
        self._lockstep = batching == "lockstep"
        with torch.inference_mode():
            injection = backend.inject(torch.zeros(slots, *input_shape, device=backend.device, dtype=backend.dtype))
            point = backend.initial_state(injection)
            self._table = SlotTable(point, injection, solver.start(point))
            self._image = backend.step(point, injection)
            self._moved = residual(point, self._image, residual_norm)
            self._logits = backend.readout(self._image).clone()
        self._jobs: dict[int, Job] = {}
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self._waiting_rows = 0
        self._next_deadline = math.inf  # of the waiting rows; may be that of one that waits no more
        self._abandoned: set[int] = set()  # jobs that nobody waits for, though rows of theirs may be in slots
        self._watched: set[int] = set()
        self._progress: list[Progress] = []
        self._finished: list[Job] = []
        self._throughput = Throughput()
        self._last_tick: float | None = None

    @property
    def slots(self) -> int:
        return self._table.slots

    @property
    def active_rows(self) -> int:
        return self._table.active

    @property
    def waiting_rows(self) -> int:
        return self._waiting_rows

    @property
    def busy(self) -> bool:
        """Whether there is anything for ``tick`` to do."""
        return bool(self._jobs or self._table.active)

    def submit(self, job: Job) -> None:
        """Queue a job; rows are admitted in order of arrival.

        Raises:
            QueueFull: if not all of its rows may wait now.
            ValueError: if its inputs are not of the network's shape, or it wants another solver or stop than there is.
        """
        rows = len(job.inputs)
        if job.inputs.shape[1:] != self.input_shape:
            raise ValueError(f"inputs: expected rows of shape {list(self.input_shape)}, got {list(job.inputs.shape[1:])}")
        if job.solver is not None and SOLVERS.get(job.solver) is not type(self._solver):
            raise ValueError(f"solver: expected that of the model, got {job.solver!r}")
        if job.stop != "tolerance":
            raise ValueError(f"stop: expected 'tolerance', got {job.stop!r}")
        excess = self._waiting_rows + rows - self.max_waiting_rows
        if excess > 0:
            raise QueueFull(self._waiting_rows, self.max_waiting_rows, self._throughput.seconds_for(excess))
        job.logits = np.full((rows, self._logits.shape[1]), np.nan)
        job.moments.submitted = self._clock()
        self._jobs[job.id] = self._waiting[job.id] = job
        self._waiting_rows += rows
        self._next_deadline = min(self._next_deadline, job.deadline.min())
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
        left = self._retire(now)
        if self._last_tick is not None:
            self._throughput.count(left, now - self._last_tick)
        self._give_up_waiting(now)
        self._admit(now)
        self._iterate()
        self._last_tick = now if self.busy else None
        finished, self._finished = self._finished, []
        return finished

    def take_progress(self) -> list[Progress]:
        """What the last tick found the iteration before to have come to, for the jobs that are watched."""
        progress, self._progress = self._progress, []
        return progress

    def _retire(self, now: float) -> int:
        table = self._table
        if not table.active:
            return 0
        moved = self._moved.cpu().numpy()  # the one moment of a tick in which the host waits for the device
        if self._watched:
            self._report(moved)
        ended = self._ended(moved, now)
        leaving = np.flatnonzero(ended)
        if not len(leaving):
            return 0
        self._abandoned.clear()  # all that were in it are leaving
        jobs, rows, moved, iterations = table.job[leaving], table.row[leaving], moved[leaving], table.iterations[leaving]
        converged, capped = moved <= table.tolerance[leaving], iterations >= table.max_iterations[leaving]
        ended_at = self._clock()
        images = self._image[torch.from_numpy(leaving)]
        logits = self._shield(self._backend.readout, self._logits, jobs, images).cpu().numpy()
        read_out_at = self._clock()
        table.remove(ended)
        self.iterations += int(iterations.sum())
        self.rows_ended += len(leaving)
        facts = (jobs.tolist(), rows.tolist(), iterations.tolist(), moved.tolist(), converged.tolist(), capped.tolist())
        for k, (id, row, count, movement, has_converged, is_capped) in enumerate(zip(*facts, strict=True)):
            if job := self._jobs.get(id):
                job.end(row, logits[k], count, movement, _status(movement, has_converged, is_capped))
                job.moments.ended, job.moments.read_out = ended_at, read_out_at
                if job.session is not None:
                    job.keep(row, images[k])
                self._deliver(job, now)
        return len(leaving)

    def _report(self, moved: NDArray[np.floating]) -> None:
        table = self._table
        watched = np.flatnonzero(np.isin(table.job, list(self._watched)))
        if not len(watched):
            return
        jobs = table.job[watched]
        images = self._image[torch.from_numpy(watched)]
        logits = self._shield(self._backend.readout, self._logits, jobs, images).cpu().numpy()
        for id in dict.fromkeys(jobs.tolist()):
            own = np.flatnonzero(jobs == id)
            rows, iterations, residuals = (values[watched[own]].tolist() for values in (table.row, table.iterations, moved))
            self._progress.append(Progress(id, rows, iterations, residuals, logits[own]))

    def _ended(self, moved: NDArray[np.floating], now: float) -> NDArray[np.bool_]:
        table = self._table
        tolerance, cap = table.tolerance, table.max_iterations
        if self._lockstep:
            tolerance, cap = tolerance.min(), cap.max()
        ended: NDArray[np.bool_] = (
            (moved <= tolerance) | ~np.isfinite(moved) | (table.iterations >= cap) | (table.deadline <= now)
        )
        if self._abandoned:
            ended |= np.isin(table.job, list(self._abandoned))
        if self._lockstep and not ended.all():
            ended[:] = False
        return ended

    def _give_up_waiting(self, now: float) -> None:
        if now < self._next_deadline:
            return
        for job in list(self._waiting.values()):
            late = job.give_up_waiting(now)
            self._waiting_rows -= late
            self.rows_ended += late
            if not len(job.waiting):
                del self._waiting[job.id]
            self._deliver(job, now)
        self._next_deadline = min((job.deadline[job.waiting].min() for job in self._waiting.values()), default=math.inf)

    def _admit(self, now: float) -> None:
        table = self._table
        free = table.slots - table.active
        if self._lockstep and table.active:
            return
        joining: list[tuple[Job, NDArray[np.int64]]] = []
        while free and self._waiting:
            job = next(iter(self._waiting.values()))
            rows = job.admit(free)
            free -= len(rows)
            self._waiting_rows -= len(rows)
            if not len(job.waiting):
                del self._waiting[job.id]
            joining.append((job, rows))
        if not joining:
            return

        def gather(values_of: Callable[[Job], NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate([values_of(job)[rows] for job, rows in joining])

        jobs = np.repeat([job.id for job, _ in joining], [len(rows) for _, rows in joining])
        admitted_at = self._clock()
        inputs = torch.from_numpy(gather(lambda job: job.inputs)).to(self._backend.device, self._backend.dtype)
        injection = self._shield(self._backend.inject, table.injection, jobs, inputs)
        injected_at = self._clock()
        for job, _ in joining:
            if job.moments.admitted is None:
                job.moments.admitted, job.moments.injected = admitted_at, injected_at
        point = self._shield(self._backend.initial_state, table.point, jobs, injection)
        if any(job.session is not None for job, _ in joining):
            point = self._warm(point, joining, now)
        table.admit(
            point=point,
            injection=injection,
            memory=self._solver.start(point),
            job=jobs,
            row=np.concatenate([rows for _, rows in joining]),
            tolerance=gather(lambda job: job.tolerance),
            max_iterations=gather(lambda job: job.max_iterations),
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

    def _iterate(self) -> None:
        table = self._table
        if not table.active:
            return
        self._image = self._shield(self._backend.step, table.point, table.job, table.point, table.injection)
        self._moved = residual(table.point, self._image, self._residual_norm)
        table.point.copy_(self._solver.propose(table.memory, table.point, self._image))
        table.iterations += 1
        self.ticks += 1
        self.step_evaluations += table.active
        self.batch_sizes[(table.active - 1).bit_length()] += 1

    def _shield(self, compute: Callable[..., Tensor], like: Tensor, jobs: NDArray[np.int64], *rows: Tensor) -> Tensor:
        """Compute rows; if that raises, compute each job's rows alone and fail the jobs that raise, leaving NaN as their rows.

        Args:
            compute: rows to rows.
            like: rows that look like the result.
            jobs: whose rows these are, ``[n]``, on the host.
            rows: arguments of ``compute``, each ``[n, ...]``.
        """
        try:
            return compute(*rows)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            log.warning("a batch could not be computed; its jobs are tried one at a time", error=repr(error), rows=len(jobs))
        result = like.new_full((len(jobs), *like.shape[1:]), math.nan)
        for id in dict.fromkeys(jobs.tolist()):
            own = torch.from_numpy(np.flatnonzero(jobs == id))
            try:
                result[own] = compute(*(tensor[own] for tensor in rows))
            except torch.AcceleratorError:
                raise
            except Exception as error:
                if job := self._abandon(id):
                    job.failure = f"{type(error).__name__}: {error}"
                    self._finished.append(job)
        return result

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
            if self._waiting.pop(id, None):
                self._waiting_rows -= len(job.waiting)
            self._abandoned.add(id)
            self._watched.discard(id)
        return job


def _status(movement: float, converged: bool, capped: bool) -> Status:
    if not math.isfinite(movement):
        return Status.DIVERGED
    if converged:
        return Status.CONVERGED
    return Status.MAX_ITERATIONS if capped else Status.DEADLINE
