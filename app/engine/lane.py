"""Lane: the rows that one solver proposes for and one backend computes."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.backends.backend import Backend
from app.engine.isolation import Fail, one_by_one
from app.engine.slots import SlotTable
from jfb import LabelStop, ResidualNorm, residual
from jfb.mixed_precision import needs_full_precision, size_in
from jfb.rows import to_device
from jfb.solvers import Memory, Solver

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


class Lane:
    """Rows that are iterated together, each iteration in parts: ``step``, residual, label stop and solver.

    Subclasses take the place of a lane without rows, and iterate in another way.

    Args:
        point, injection: any rows, as many as there shall be slots.
        label_stop: judges the rows that end by their label, which no rows here may do if it is None.
        full_precision: if this lane computes in low precision, the one that its rows go on in. No row ends in such a lane: one
            that has come near to its tolerance, its cap or its deadline goes on, so every result is of the full precision.

    Attributes:
        in_blocks: whether the device may go on to iterate while the host does other work.
        next_state: ``step`` of the points before the last iteration, ``[active, *state_shape]``, or of all slots.
        iteration_seconds: measured: of an iteration of 1, 2, 4, ... rows; while it is empty, rows are looked at after each.
        wasted_iterations: those of slots without a row, and of rows that had ended.
    """

    in_blocks = False

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
        self.backend, self.solver, self.residual_norm = backend, solver, residual_norm
        self.label_stop, self.full_precision = label_stop, full_precision
        self.iteration_seconds: Sequence[float] = ()
        self.wasted_iterations = 0
        # A streamed row is read out in low precision, too, but not in low precision.
        self.readout = (full_precision.backend if full_precision is not None else backend).readout
        memory = self.start(point)
        self.table = SlotTable(point, injection, memory)
        # Tried out at once, so that what does not compute or does not fit into memory fails here.
        self.next_state = backend.evaluate(solver, memory, point, injection)
        solver.propose(memory, point, self.next_state)
        self._residual: NDArray[np.floating] = residual(point, self.next_state, residual_norm).cpu().numpy()
        self._size = self._residual  # of the states, in low precision
        self._logits = self.readout(self.next_state).clone()
        self._judged: tuple[NDArray[np.intp], Tensor] | None = None  # the rows that may end by their label, and their logits
        self._label_memory = list(label_stop.start(point)) if label_stop is not None else []

    def start(self, point: Tensor) -> Memory:
        """What rows that start at these points remember."""
        return self.solver.start(point) | (self.label_stop.start(point) if self.label_stop is not None else {})

    def measure(self, clock: Callable[[], float]) -> None:
        """Find out how long an iteration of 1, 2, 4, ... rows takes, while there are none."""
        self.iteration_seconds = [self.seconds(rows, clock) for rows in self.sizes]

    @property
    def sizes(self) -> list[int]:
        """How many rows are measured: 1, 2, 4, ..., and all slots."""
        return [min(2**k, self.table.slots) for k in range((self.table.slots - 1).bit_length() + 1)]

    def seconds(self, rows: int, clock: Callable[[], float]) -> float:
        """Measure an iteration of that many rows, while there are none."""
        self.table.fill(rows)
        found = shortest(self._try, clock)
        self.table.fill(0)
        self._settle(0)
        self.wasted_iterations = 0
        return found

    def _try(self) -> None:
        self._iterate(1, False, lambda *_: None)
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
        self.table.close_gaps()
        most = self._most() if self.iteration_seconds and not once else 1
        judging = self.label_stop is not None and bool(self.table.by_label.any())
        done = self._iterate(most, judging, fail)
        while done < most and not self._some_ended():
            done += self._iterate(most - done, judging, fail)
        self._settle(done)
        return self._computed(), done

    def _most(self) -> int:
        """How often to iterate if no row ends."""
        left = self.table.max_iterations - self.table.iterations
        return min(self.iterations_between_looks(self.table.active), int(left.min()))

    def _iterate(self, most: int, judging: bool, fail: Fail) -> int:
        """Iterate at least once, and judge the rows that end by their label, if there are any; return how often."""
        table, point = self.table, self.table.point
        self.next_state = self._evaluate(fail)
        moved = residual(point, self.next_state, self.residual_norm)
        self._residual = moved.cpu().numpy()
        if self.full_precision is not None:
            self._size = size_in(self.next_state, self.residual_norm).cpu().numpy()
        self._judged = None
        if judging and self.label_stop is not None:
            rows = np.flatnonzero(table.by_label)
            index = self._index(rows)
            logits = self._read_out(rows, self.next_state[index], fail).clone()  # others may read out before these rows leave
            if self.label_stop.norm is not self.residual_norm:
                moved = self.label_stop.movement(point, self.next_state)
            self._judge(rows, moved[index], logits)
        point.copy_(self.solver.propose(table.memory, point, self.next_state))
        return 1

    def _settle(self, done: int) -> None:
        """Make the table what that many iterations have made of it."""
        self.table.iterations += done

    def _computed(self) -> int:
        """How many slots an iteration computes."""
        return self.table.active

    def _evaluate(self, fail: Fail) -> Tensor:
        table = self.table
        names, memory = list(table.memory), tuple(table.memory.values())

        def evaluate(point: Tensor, injection: Tensor, *memory: Tensor) -> Tensor:
            return self.backend.evaluate(self.solver, dict(zip(names, memory, strict=True)), point, injection)

        compute, changed = (evaluate, memory) if self.solver.splits else (self.backend.step, ())
        try:
            return compute(table.point, table.injection, *changed)
        except Exception as error:
            return one_by_one(error, compute, table.point, table.request, fail, table.point, table.injection, changed=changed)

    def _read_out(self, rows: NDArray[np.intp], states: Tensor, fail: Fail) -> Tensor:
        try:
            return self.readout(states)
        except Exception as error:
            return one_by_one(error, self.readout, self._logits, self.table.request[rows], fail, states)

    def _index(self, rows: NDArray[np.intp]) -> slice | Tensor:
        """Of these rows; of all rows nothing is copied."""
        return slice(None) if len(rows) == self.table.active else torch.from_numpy(rows)

    def _judge(self, rows: NDArray[np.intp], movement: Tensor, logits: Tensor) -> None:
        assert self.label_stop is not None
        index, table, memory = self._index(rows), self.table, self.table.memory
        own = {name: memory[name][index] for name in self._label_memory}
        stability = self.label_stop.judge(own, movement, logits)
        for name, tensor in own.items():
            memory[name][index] = tensor
        table.margin[rows], table.bound[rows] = stability.margin.cpu().numpy(), stability.bound.cpu().numpy()
        self._judged = rows, logits

    def wait_for_residual(self) -> NDArray[np.floating]:
        """The residuals of the last iteration, ``[active]``."""
        return self._residual

    def _some_ended(self) -> bool:
        """Whether a row is done, except by its deadline or its cap."""
        found = self.wait_for_residual()
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
        return ended | (table.iterations >= table.max_iterations) | (table.deadline <= now) | (table.margin > table.bound)

    def states(self, rows: NDArray[np.intp]) -> Tensor:
        """The last states of m rows, ``[m, *state_shape]``."""
        return self.next_state[to_device(rows, self.next_state.device)]

    def read_out(self, rows: NDArray[np.intp], fail: Fail) -> NDArray[np.floating]:
        """The logits of m rows, ``[m, classes]``, on the host; what was judged is not read out again."""
        if self._judged is not None and self.table.by_label[rows].all():
            judged, logits = self._judged
            return logits[torch.from_numpy(np.searchsorted(judged, rows))].cpu().numpy()
        return self._read_out(rows, self.states(rows), fail).cpu().numpy()

    def hand_over(
        self, full_precision: "Lane", residual: NDArray[np.floating], ended: NDArray[np.bool_], now: float
    ) -> NDArray[np.bool_]:
        """Give another lane the rows that low precision cannot bring nearer; return which: they are still here."""
        table = self.table
        near = needs_full_precision(residual, self._size, table.tolerance, self.backend.roundoff)
        near = (near | (table.iterations >= table.max_iterations - 1) | (table.deadline <= now)) & ~ended
        if near.any():
            full_precision.table.admit_from(table, np.flatnonzero(near))
        return near
