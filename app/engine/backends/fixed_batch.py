"""FixedBatch: every map computed for the same number of rows."""

from collections.abc import Callable

from torch import Tensor

from app.engine.backends.backend import Backend
from jfb.solvers import Memory, Solver
from jfb.solvers.anderson import inverse, memory_order


class FixedBatch(Backend):
    """Fills each batch up to the same number of rows, because kernels, and how they round, depend on it.

    Args:
        backend: computes the maps.
        rows: at most that many may be given.
    """

    def __init__(self, backend: Backend, rows: int) -> None:
        self.device, self.dtype = backend.device, backend.dtype
        self._backend = backend
        self._rows = rows

    def inject(self, inputs: Tensor) -> Tensor:
        return self._compute(self._backend.inject, inputs)

    def initial_state(self, injection: Tensor) -> Tensor:
        return self._compute(self._backend.initial_state, injection)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return self._compute(self._backend.step, state, injection)

    def evaluate(self, solver: Solver, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        filled = {name: self._filled(tensor) for name, tensor in memory.items()}
        next_state = self._backend.evaluate(solver, filled, self._filled(point), self._filled(injection))
        for name, tensor in memory.items() if solver.splits else ():
            tensor.copy_(filled[name][: len(tensor)])
        return next_state[: len(point)]

    def readout(self, state: Tensor) -> Tensor:
        return self._compute(self._backend.readout, state)

    def _compute(self, compute: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        return compute(*map(self._filled, rows))[: len(rows[0])]

    def _filled(self, rows: Tensor) -> Tensor:
        """Rows and then zeros, laid out in memory as the rows are; the rows themselves where there are enough."""
        if len(rows) == self._rows:
            return rows
        places = memory_order(rows)
        sides = [rows.shape[place] for place in places[1:]]
        filled = rows.new_zeros(self._rows, *sides).permute(inverse(places))
        filled[: len(rows)] = rows
        return filled
