"""Lane: the rows that one solver proposes for and one backend computes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.backends.backend import Backend
from app.engine.isolation import Fail, one_by_one
from app.engine.masked import Evaluate, MaskedIterations, Masking, Readout
from app.engine.slots import SlotTable
from jfb import LabelStop, ResidualNorm, residual
from jfb.label_stop import Stability
from jfb.mixed_precision import needs_full_precision, size_in
from jfb.onnx.file import OnnxFileError
from jfb.onnx.fused import FusedIteration
from jfb.solvers import Memory, Solver

log = structlog.get_logger(__name__)

MAX_SECONDS_BETWEEN_LOOKS = 1e-3
"""How long rows are iterated before the engine looks at what has arrived, unless one of them ends earlier."""
TRIES = 5
"""Of what is tried out, to find out how long it takes."""


def shortest(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """The seconds of the shortest of a few runs, as others may be using the machine."""
    times = [clock()]
    for _ in range(TRIES):
        run()
        times.append(clock())
    return min(end - begin for begin, end in pairwise(times))


@dataclass(frozen=True)
class _Judged:
    """What the last iteration came to for the m rows, ascending, that may end by their label; logits are ``[m, classes]``."""

    rows: NDArray[np.intp]
    logits: Tensor
    stability: Stability


class Lane:
    """Rows that are iterated together: one call of ``step`` per iteration.

    Args:
        point, injection: any rows, as many as there shall be slots.
        label_stop: judges the rows that end by their label, which no rows here may do if it is None.
        full_precision: if this lane computes in low precision, the one that its rows go on in. No row ends in such a lane: one
            that has come near to its tolerance, its cap or its deadline goes on, so every result is of the full precision.

    Attributes:
        next_state: ``step`` of the points before the last iteration, ``[active, *state_shape]``, or of all slots.
        iteration_seconds: measured: of an iteration of 1, 2, 4, ... rows; while it is empty, rows are looked at after each.
        wasted_iterations: those of slots without a row, and of rows that had ended.
    """

    def __init__(
        self,
        backend: Backend,
        solver: Solver,
        residual_norm: ResidualNorm,
        point: Tensor,
        injection: Tensor,
        *,
        label_stop: LabelStop | None = None,
        full_precision: "Lane | None" = None,
    ) -> None:
        self.solver = solver
        self.label_stop = label_stop
        self.iteration_seconds: Sequence[float] = ()
        self.wasted_iterations = 0
        self._label_memory = list(label_stop.start(point)) if label_stop is not None else []
        memory = self.start(point)
        self.table = SlotTable(point, injection, memory)
        self.full_precision = full_precision
        self._backend = backend
        self._residual_norm = residual_norm
        # Tried out at once, so that what does not compute or does not fit into memory fails here.
        self.next_state = backend.evaluate(solver, memory, point, injection)
        solver.propose(memory, point, self.next_state)
        self._size = residual(point, self.next_state, residual_norm)
        self._residual: Tensor | NDArray[np.floating] = self._size
        self._logits = backend.readout(self.next_state).clone() if full_precision is None else self.next_state
        self._judged: _Judged | None = None
        self._all_go_on = True
        self._logits_on_host: Tensor | None = None  # of all rows, if the last block of masked iterations read them out
        self._fused: FusedIteration | None = None
        self._masked: MaskedIterations | None = None
        self._started: tuple[int, int, bool] | None = None  # slots, iterations, and whether they are judged; not waited for yet

    def start(self, point: Tensor) -> Memory:
        """What rows that start at these points remember."""
        return self.solver.start(point) | (self.label_stop.start(point) if self.label_stop is not None else {})

    def measure(self, clock: Callable[[], float], masking: Masking | None = None) -> None:
        """Find out how long an iteration takes, and whether one call for all of it beats calls for its parts.

        With ``masking``, iterations are masked, whether or not that is faster. Only while there are no rows.
        """
        if masking is not None:
            backend = (self.full_precision or self)._backend
            self._masked = MaskedIterations(
                self.table,
                self.solver,
                self._residual_norm,
                partial(self._backend.evaluate, self.solver),
                backend.readout,
                label_stop=self.label_stop,
                low_precision=self.full_precision is not None,
                masking=masking,
            )
            self.next_state = self._masked.next_state
        self.iteration_seconds = self._measured(clock)
        self.wasted_iterations = 0
        if masking is not None:
            return
        as_parts = self.table
        point, injection = (as_parts.tensors[name].contiguous() for name in ("point", "injection"))
        self.table = SlotTable(point, injection, self.start(point))
        stop_norm = self.label_stop.norm if self.label_stop is not None else self._residual_norm
        try:
            self._fused = self._backend.fused(self.table.tensors, self.solver, self._residual_norm, stop_norm)
        except OnnxFileError as error:
            log.warning("no fused iteration", reason=str(error))
        if self._fused is not None and math.prod(seconds := self._measured(clock)) < math.prod(self.iteration_seconds):
            self.iteration_seconds = seconds
        else:
            self._fused, self.table = None, as_parts

    def _measured(self, clock: Callable[[], float]) -> list[float]:
        """Seconds of an iteration of 1, 2, 4, ... rows: the best of a few, as others may be using the machine."""
        found = []
        for k in range((self.table.slots - 1).bit_length() + 1):
            self.table.fill(min(2**k, self.table.slots))
            found.append(shortest(self._try, clock))
        self.table.fill(0)
        self._settle()
        return found

    def _try(self) -> None:
        self._iterate(False, lambda *_: None)
        self.wait_for_residual()

    def iterations_between_looks(self, rows: int) -> int:
        """How many iterations of that many rows fit between two looks, at least 1; measured."""
        return max(1, int(MAX_SECONDS_BETWEEN_LOOKS / self.iteration_seconds[(rows - 1).bit_length()]))

    def advance(self, fail: Fail, *, once: bool = False) -> tuple[int, int]:
        """Iterate all rows until one of them has ended, or until it is time to look at what has arrived.

        Args:
            once: whether to iterate once only.

        Returns:
            How many slots were computed, and how often.
        """
        table, most, slots = self.table, 1, self.table.active
        if self.iteration_seconds and not once:
            left = table.max_iterations - table.iterations
            most = min(self.iterations_between_looks(table.active), int(left.min() if self._masked is None else left.max()))
        judging = self.label_stop is not None and bool(table.by_label.any())
        if self._masked is not None:
            slots = self._masked.bucket(table.active)
            if table.point.is_cuda:  # to look before the block has ended would be to wait for it
                most = self._masked.block(most)
        done = 0
        while not done or (done < most and not self._some_ended()):
            done += self._iterate(judging, fail, most - done)
        self._settle()
        if self._masked is None:
            table.iterations += done
        return slots, done

    def _iterate(self, judging: bool, fail: Fail, most: int = 1) -> int:
        """Iterate, and judge the rows that end by their label, if there are any; return how often, once unless it is masked."""
        if self._masked is not None:
            return self._iterate_masked(self._masked, judging, fail, most)
        self._iterate_once(judging, fail)
        return 1

    def _iterate_masked(self, masked: MaskedIterations, judging: bool, fail: Fail, most: int) -> int:
        times, active = masked.block(most), self.table.active
        try:
            masked.start(times, judging)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            if not (times := masked.completed):
                log.warning("masked iteration failed, computing its requests one by one", error=repr(error), rows=active)
                times = 1
                masked.start_once(*self._isolated(fail), judging)
                for tensor in self.table.tensors.values():
                    tensor[active:] = tensor[:1]  # what raised may be in a free slot, and is computed no more
        self._started = masked.bucket(active), times, judging
        return times

    def _isolated(self, fail: Fail) -> tuple[Evaluate, Readout]:
        """Maps of all slots that fail the requests whose rows raise."""
        active = self.table.active

        def evaluate(memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
            found = point.clone()
            found[:active] = self._evaluate(fail)
            return found

        def readout(states: Tensor) -> Tensor:
            found = self._logits[: len(states)].clone()
            found[:active] = self._readout(np.arange(active), states[:active], fail)
            return found

        return evaluate, readout

    def _collect(self) -> None:
        """Take what a block of masked iterations came to."""
        if self._masked is None or self._started is None:
            return
        (slots, times, judging), self._started = self._started, None
        table = self.table
        counts, moved, size, margin, bound, running = self._masked.wait()[:, : table.active]
        self._all_go_on = bool(running.all())
        table.iterations += counts.astype(np.int64)
        self.wasted_iterations += slots * times - int(counts.sum())
        self._residual, self._size = moved.astype(table.tolerance.dtype), torch.from_numpy(size.astype(table.tolerance.dtype))
        self._logits_on_host, self._judged = self._masked.logits(judging), None
        if judging and self._logits_on_host is not None:
            rows = np.flatnonzero(table.by_label)
            stability = Stability(torch.from_numpy(margin[rows]), torch.from_numpy(bound[rows]))
            self._judged = _Judged(rows, self._logits_on_host[rows], stability)

    def _iterate_once(self, judging: bool, fail: Fail) -> None:
        if self._fused is None:
            self._iterate_in_parts(judging, fail)
            return
        try:
            found = self._fused(self.table.active, logits=judging)
        except Exception as error:  # ONNX Runtime's exceptions have no common type
            log.warning("fused iteration failed, computing its parts", error=repr(error), rows=self.table.active)
            self._settle()
            self._iterate_in_parts(judging, fail)
            return
        self.next_state, self._residual, self._judged = found.next_state, found.residual, None
        if judging:
            rows = np.flatnonzero(self.table.by_label)
            index = self._index(rows)
            self._judged = self._judge(rows, found.movement[index], found.logits[index])

    def _settle(self) -> None:
        if self._fused is not None and (replaced := self._fused.settle()):
            self.table.replace(**replaced)

    def _iterate_in_parts(self, judging: bool, fail: Fail) -> None:
        table, point = self.table, self.table.point
        self.next_state = self._evaluate(fail)
        self._residual = moved = residual(point, self.next_state, self._residual_norm)
        if self.full_precision is not None:
            self._size = size_in(self.next_state, self._residual_norm)
        self._judged = None
        if judging and self.label_stop is not None:
            rows = np.flatnonzero(table.by_label)
            index = self._index(rows)
            logits = self._readout(rows, self.next_state[index], fail).clone()  # others may read out before these rows leave
            if self.label_stop.norm is not self._residual_norm:
                moved = self.label_stop.movement(point, self.next_state)
            self._judged = self._judge(rows, moved[index], logits)
        point.copy_(self.solver.propose(table.memory, point, self.next_state))

    def _evaluate(self, fail: Fail) -> Tensor:
        table = self.table
        names, memory = list(table.memory), tuple(table.memory.values())

        def evaluate(point: Tensor, injection: Tensor, *memory: Tensor) -> Tensor:
            return self._backend.evaluate(self.solver, dict(zip(names, memory, strict=True)), point, injection)

        compute, changed = (evaluate, memory) if self.solver.splits else (self._backend.step, ())
        try:
            return compute(table.point, table.injection, *changed)
        except Exception as error:
            return one_by_one(error, compute, table.point, table.request, fail, table.point, table.injection, changed=changed)

    def _index(self, rows: NDArray[np.intp]) -> slice | Tensor:
        """Of these rows; of all rows nothing is copied."""
        return slice(None) if len(rows) == self.table.active else torch.from_numpy(rows)

    def _judge(self, rows: NDArray[np.intp], movement: Tensor, logits: Tensor) -> _Judged:
        assert self.label_stop is not None
        index, memory = self._index(rows), self.table.memory
        own = {name: memory[name][index] for name in self._label_memory}
        stability = self.label_stop.judge(own, movement, logits)
        for name, tensor in own.items():
            memory[name][index] = tensor
        return _Judged(rows, logits, stability)

    def _readout(self, rows: NDArray[np.intp], states: Tensor, fail: Fail) -> Tensor:
        lane = self.full_precision or self  # a streamed row is read out in low precision, too, but not in low precision
        try:
            return lane._backend.readout(states)
        except Exception as error:
            return one_by_one(error, lane._backend.readout, lane._logits, self.table.request[rows], fail, states)

    def wait_for_residual(self) -> NDArray[np.floating]:
        """The residuals of the last iteration, ``[active]``: the host waits for the device here, and nowhere else in a tick."""
        self._collect()
        found = self._residual if isinstance(self._residual, np.ndarray) else self._residual.cpu().numpy()
        if self._judged is not None:
            self.table.margin[self._judged.rows] = self._judged.stability.margin.cpu().numpy()
            self.table.bound[self._judged.rows] = self._judged.stability.bound.cpu().numpy()
        return found

    def _some_ended(self) -> bool:
        """Whether a row is done, except by its deadline, or its cap unless it is masked."""
        found = self.wait_for_residual()
        if self._masked is not None:
            return not self._all_go_on
        if len(found) == 1:  # for which NumPy would take ten times as long
            if not self.table.tolerance.item() < found.item() < math.inf:
                return True
        elif not ((found > self.table.tolerance) & (found < np.inf)).all():
            return True
        return self._judged is not None and bool((self.table.margin > self.table.bound).any())

    def ended(self, residual: NDArray[np.floating], now: float) -> NDArray[np.bool_]:
        """Which rows are done, ``[active]``: with a settled label, at their cap, ...; none in a lane of low precision."""
        table = self.table
        if self.full_precision is not None:
            return np.zeros(table.active, np.bool_)
        ended: NDArray[np.bool_] = (residual <= table.tolerance) | ~np.isfinite(residual)
        ended |= (table.iterations >= table.max_iterations) | (table.deadline <= now)
        if self._judged is not None:
            ended |= table.margin > table.bound
        return ended

    def states(self, rows: NDArray[np.intp]) -> Tensor:
        """The last states of m rows, ``[m, *state_shape]``."""
        return self.next_state[torch.from_numpy(rows)]

    def read_out(self, rows: NDArray[np.intp], fail: Fail) -> NDArray[np.floating]:
        """The logits of m rows, ``[m, classes]``, on the host; what was judged is not read out again."""
        if self._logits_on_host is not None:
            logits = self._logits_on_host[torch.from_numpy(rows)]
        elif self._judged is not None and self.table.by_label[rows].all():
            logits = self._judged.logits[torch.from_numpy(np.searchsorted(self._judged.rows, rows))]
        else:
            logits = self._readout(rows, self.states(rows), fail)
        found: NDArray[np.floating] = logits.cpu().numpy()
        return found

    def hand_over(
        self, full_precision: "Lane", residual: NDArray[np.floating], ended: NDArray[np.bool_], now: float
    ) -> NDArray[np.bool_]:
        """Give another lane the rows that low precision cannot bring nearer; return which: they are still here."""
        table = self.table
        near = needs_full_precision(residual, self._size.cpu().numpy(), table.tolerance)
        near = (near | (table.iterations >= table.max_iterations - 1) | (table.deadline <= now)) & ~ended
        if near.any():
            full_precision.table.admit_from(table, np.flatnonzero(near))
        return near
