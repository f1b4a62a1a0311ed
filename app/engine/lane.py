"""Lane: rows that iterate alike."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.engine.backends import Backend
from app.engine.shield import Fail, shielded
from app.engine.slots import SlotTable
from jfb import ResidualNorm, residual
from jfb.mixed_precision import hands_over, size_in
from jfb.solvers import Solver

Batching = Literal["iteration", "lockstep"]


class Lane:
    """The rows of a running batch that one solver proposes for and one backend computes: one call of ``step`` a tick.

    Args:
        backend: computes ``step``.
        solver: proposes the next points.
        residual_norm: how movement is measured.
        point, injection: any rows, as many as there shall be slots.
        lockstep: whether rows leave together, when the worst of them has ended at the strictest tolerance and the largest cap.
        exact: if this lane computes in low precision, the one that its rows go on in. No row ends in such a lane: one that has
            come near to its tolerance, its cap or its deadline goes on, so what is said of its answer is of the exact lane.

    Attributes:
        table: the rows.
        image: ``step`` of the points before the last iteration, ``[active, *state_shape]``.
        exact, solver: the arguments.
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
        exact: "Lane | None" = None,
    ) -> None:
        self.table = SlotTable(point, injection, solver.start(point))
        self.solver = solver
        self.exact = exact
        self._backend = backend
        self._residual_norm = residual_norm
        self._lockstep = lockstep
        # Tried out at once, so that what does not compute or does not fit into memory fails here.
        self.image = backend.evaluate(solver, self.table.full_memory, point, injection)
        solver.propose(self.table.full_memory, point, self.image)
        self._moved = residual(point, self.image, residual_norm)
        self._size = self._moved

    @property
    def active(self) -> int:
        return self.table.active

    @property
    def open(self) -> bool:
        """Whether rows may join now."""
        return not (self._lockstep and self.table.active)

    def iterate(self, fail: Fail) -> None:
        """Evaluate the map once for every row, and move on."""
        table = self.table
        names, memory = list(table.memory), tuple(table.memory.values())

        def evaluate(point: Tensor, injection: Tensor, *memory: Tensor) -> Tensor:
            return self._backend.evaluate(self.solver, dict(zip(names, memory, strict=True)), point, injection)

        self.image = shielded(evaluate, table.point, table.job, fail, table.point, table.injection, changed=memory)
        self._moved = residual(table.point, self.image, self._residual_norm)
        if self.exact is not None:
            self._size = size_in(self.image, self._residual_norm)
        table.point.copy_(self.solver.propose(table.memory, table.point, self.image))
        table.iterations += 1

    def look(self) -> NDArray[np.floating]:
        """The residuals of the last iteration, ``[active]``: the one moment of a tick in which the host waits for the device."""
        moved: NDArray[np.floating] = self._moved.cpu().numpy()
        return moved

    def ended(self, moved: NDArray[np.floating], now: float) -> NDArray[np.bool_]:
        """Which rows are done, ``[active]``: converged, diverged, at their cap or past their deadline. None in a rough lane."""
        table = self.table
        if self.exact is not None:
            return np.zeros(table.active, np.bool_)
        tolerance, cap = table.tolerance, table.max_iterations
        if self._lockstep:
            tolerance, cap = tolerance.min(), cap.max()
        ended: NDArray[np.bool_] = (
            (moved <= tolerance) | ~np.isfinite(moved) | (table.iterations >= cap) | (table.deadline <= now)
        )
        return ended

    def leaving(self, ended: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the rows that are done may leave: in lockstep all or none."""
        return ended if not self._lockstep or ended.all() else np.zeros_like(ended)

    def hand_over(self, moved: NDArray[np.floating], ended: NDArray[np.bool_], now: float) -> NDArray[np.bool_]:
        """Give the exact lane the rows that low precision cannot bring nearer, but for those that have ended.

        Returns:
            Which they are, ``[active]``; this lane still has them.
        """
        table = self.table
        if self.exact is None:
            return np.zeros(table.active, np.bool_)
        near = hands_over(moved, self._size.cpu().numpy(), table.tolerance)
        near |= (table.iterations >= table.max_iterations - 1) | (table.deadline <= now)
        near &= ~ended
        if near.any():
            self.exact.table.admit_from(table, near)
        return near
