"""Lane: rows that iterate alike."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.backends import Backend
from app.engine.isolation import Fail, shielded
from app.engine.slots import SlotTable
from jfb import LabelStop, ResidualNorm, residual
from jfb.label_stop import Stability
from jfb.mixed_precision import needs_full_precision, size_in
from jfb.solvers import Memory, Solver

Batching = Literal["iteration", "lockstep"]


@dataclass(frozen=True)
class _Judged:
    """What the last iteration came to for the m rows that may end by their label."""

    rows: NDArray[np.intp]
    """Which they are, ascending."""
    logits: Tensor
    """Shape ``[m, classes]``."""
    stability: Stability


class Lane:
    """The rows of a running batch that one solver proposes for and one backend computes: one call of ``step`` a tick.

    Args:
        backend: computes ``step``.
        solver: proposes the next points.
        residual_norm: how movement is measured.
        point, injection: any rows, as many as there shall be slots.
        lockstep: whether rows leave together, when the worst of them has ended at the strictest tolerance and the largest cap.
        label_stop: judges the rows that end by their label, which no rows here may do if it is None.
        exact: if this lane computes in low precision, the one that its rows go on in. No row ends in such a lane: one that has
            come near to its tolerance, its cap or its deadline goes on, so what is said of its answer is of the exact lane.

    Attributes:
        table: the rows.
        image: ``step`` of the points before the last iteration, ``[active, *state_shape]``.
        exact, label_stop, solver: the arguments.
    """

    def __init__(
        self,
        backend: Backend,
        solver: Solver,
        residual_norm: ResidualNorm,
        point: Tensor,
        injection: Tensor,
        *,
        lockstep: bool = False,
        label_stop: LabelStop | None = None,
        exact: "Lane | None" = None,
    ) -> None:
        self.solver = solver
        self.label_stop = label_stop
        self.table = SlotTable(point, injection, self.start(point))
        self.exact = exact
        self._backend = backend
        self._residual_norm = residual_norm
        self._lockstep = lockstep
        # Tried out at once, so that what does not compute or does not fit into memory fails here.
        self.image = backend.evaluate(solver, self.table.full_memory, point, injection)
        solver.propose(self.table.full_memory, point, self.image)
        self._moved = residual(point, self.image, residual_norm)
        self._size = self._moved
        self._logits = backend.readout(self.image).clone() if exact is None else self.image
        self._judged: _Judged | None = None

    @property
    def active(self) -> int:
        return self.table.active

    @property
    def open(self) -> bool:
        """Whether rows may join now."""
        return not (self._lockstep and self.table.active)

    def start(self, point: Tensor) -> Memory:
        """What rows that start at these points remember."""
        return self.solver.start(point) | (self.label_stop.start(point) if self.label_stop is not None else {})

    def iterate(self, fail: Fail) -> None:
        """Evaluate the map once for every row, and move on."""
        table = self.table
        self.image = self._evaluate(table, fail)
        self._moved = residual(table.point, self.image, self._residual_norm)
        if self.exact is not None:
            self._size = size_in(self.image, self._residual_norm)
        self._judged = self._judge(self.label_stop, fail) if self.label_stop is not None and table.some_by_label else None
        table.point.copy_(self.solver.propose(table.memory, table.point, self.image))
        table.iterations += 1

    def _evaluate(self, table: SlotTable, fail: Fail) -> Tensor:
        if not self.solver.splits:
            return shielded(self._backend.step, table.point, table.job, fail, table.point, table.injection)
        names, memory = list(table.memory), tuple(table.memory.values())

        def evaluate(point: Tensor, injection: Tensor, *memory: Tensor) -> Tensor:
            return self._backend.evaluate(self.solver, dict(zip(names, memory, strict=True)), point, injection)

        return shielded(evaluate, table.point, table.job, fail, table.point, table.injection, changed=memory)

    def _judge(self, label_stop: LabelStop, fail: Fail) -> _Judged:
        """Read out the rows that end by their label, and no others."""
        table = self.table
        rows = np.flatnonzero(table.by_label)
        index = slice(None) if len(rows) == table.active else torch.from_numpy(rows)  # of all rows nothing is copied
        images = self.image[index]
        logits = shielded(self._backend.readout, self._logits, table.job[rows], fail, images)
        memory = {name: tensor[index] for name, tensor in table.memory.items()}
        stability = label_stop.judge(memory, table.point[index], images, logits)
        for name, tensor in memory.items():
            table.memory[name][index] = tensor
        return _Judged(rows, logits.clone(), stability)  # others may read out before these rows leave

    def look(self) -> NDArray[np.floating]:
        """The residuals of the last iteration, ``[active]``: the one moment of a tick in which the host waits for the device."""
        moved: NDArray[np.floating] = self._moved.cpu().numpy()
        if self._judged is not None:
            self.table.margin[self._judged.rows] = self._judged.stability.margin.cpu().numpy()
            self.table.bound[self._judged.rows] = self._judged.stability.bound.cpu().numpy()
        return moved

    def read_out(self, rows: NDArray[np.intp], fail: Fail) -> tuple[Tensor, NDArray[np.floating]]:
        """The images of m rows, and their logits ``[m, classes]`` on the host; what has been judged is not read out again."""
        table, images = self.table, self.image[torch.from_numpy(rows)]
        if self._judged is not None and table.by_label[rows].all():
            logits = self._judged.logits[torch.from_numpy(np.searchsorted(self._judged.rows, rows))]
        else:
            logits = shielded(self._backend.readout, self._logits, table.job[rows], fail, images)
        return images, logits.cpu().numpy()

    def ended(self, moved: NDArray[np.floating], now: float) -> NDArray[np.bool_]:
        """Which rows are done, ``[active]``: converged, with a settled label, diverged, at their cap or past their deadline.

        None in a rough lane.
        """
        table = self.table
        if self.exact is not None:
            return np.zeros(table.active, np.bool_)
        tolerance, cap = table.tolerance, table.max_iterations
        if self._lockstep:
            tolerance, cap = tolerance.min(), cap.max()
        ended: NDArray[np.bool_] = (
            (moved <= tolerance) | ~np.isfinite(moved) | (table.iterations >= cap) | (table.deadline <= now)
        )
        if table.some_by_label:
            ended |= table.margin > table.bound
        return ended

    def leaving(self, ended: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the rows that are done may leave: in lockstep all or none."""
        return ended if not self._lockstep or ended.all() else np.zeros_like(ended)

    def hand_over(self, moved: NDArray[np.floating], ended: NDArray[np.bool_], now: float) -> NDArray[np.bool_]:
        """Give the exact lane (there must be one) the rows that low precision cannot bring nearer, but for those that have ended.

        Returns:
            Which they are, ``[active]``; this lane still has them.
        """
        assert self.exact is not None
        table = self.table
        near = needs_full_precision(moved, self._size.cpu().numpy(), table.tolerance)
        near |= (table.iterations >= table.max_iterations - 1) | (table.deadline <= now)
        near &= ~ended
        if near.any():
            self.exact.table.admit_from(table, near)
        return near
