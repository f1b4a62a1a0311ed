"""ChosenBackend: for each map and number of rows the backend that was measured to be fastest."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from app.engine.backends.backend import Backend
from jfb.solvers import Memory, Solver

Map = Literal["inject", "step", "readout"]
MAPS: tuple[Map, ...] = ("inject", "step", "readout")


class ChosenBackend(Backend):
    """Hands each call to one of several backends of the same network.

    Args:
        backends: by name; the first computes what is not in the table, such as initial states and maps that a solver splits.
        table: for each map, the names for at most 1, 2, 4, 8, ... rows; the last holds for more, too.
        in_pairs: whether a single row is injected as two. Kernels for one row are often others, and round otherwise, which low
            precision makes visible.
    """

    def __init__(self, backends: Mapping[str, Backend], table: Mapping[Map, list[str]], *, in_pairs: bool = False) -> None:
        self._first = next(iter(backends.values()))
        self.device = self._first.device
        self.dtype = self._first.dtype
        self._in_pairs = in_pairs
        self._table = {name: [backends[chosen] for chosen in names] for name, names in table.items()}

    def inject(self, inputs: Tensor) -> Tensor:
        if self._in_pairs and len(inputs) == 1:
            return self._for("inject", inputs).inject(inputs.expand(2, *inputs.shape[1:]).contiguous())[:1]
        return self._for("inject", inputs).inject(inputs)

    def initial_state(self, injection: Tensor) -> Tensor:
        return self._first.initial_state(injection)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return self._for("step", state).step(state, injection)

    def evaluate(self, solver: Solver, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        if not solver.splits:
            return self.step(point, injection)
        return self._first.evaluate(solver, memory, point, injection)

    def readout(self, state: Tensor) -> Tensor:
        return self._for("readout", state).readout(state)

    def _for(self, name: Map, rows: Tensor) -> Backend:
        row = self._table[name]
        return row[min((max(rows.shape[0], 1) - 1).bit_length(), len(row) - 1)]
