"""Backend: what computes the maps of an implicit network, on a device."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from onnx import ModelProto
from torch import Tensor

from jfb import ImplicitNetwork, ModelConfig, ResidualNorm
from jfb.mixed_precision import ROUNDOFF, low_precision_step
from jfb.onnx.file import read
from jfb.onnx.fused import FusedIteration
from jfb.onnx.iteration import iteration
from jfb.onnx.network import OnnxNetwork
from jfb.onnx.one_row import OneRow
from jfb.solvers import Memory, Mixing, Picard, Solver

Map = Literal["inject", "initial_state", "step", "readout"]
Compute = Callable[..., Tensor]
MAPS: tuple[Map, ...] = ("inject", "initial_state", "step", "readout")


class Backend(ABC):
    """Computes the maps of one network for the engine; tensors live on ``device`` and have type ``dtype``.

    Rows are independent: nothing that a row computes depends on another row, or on how many there are. What a map
    returns may be overwritten when the same map is called next, so that a backend can reuse its memory.
    """

    device: torch.device
    dtype: torch.dtype
    roundoff = ROUNDOFF  # of ``step``, where it computes in low precision

    @abstractmethod
    def inject(self, inputs: Tensor) -> Tensor:
        """Map raw inputs ``[n, *input_shape]`` to the injection ``[n, ...]``."""

    @abstractmethod
    def initial_state(self, injection: Tensor) -> Tensor:
        """Return where the iteration starts, ``[n, *state_shape]``."""

    @abstractmethod
    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        """Apply the fixed-point map once: ``[n, *state_shape]`` to the same shape."""

    @abstractmethod
    def evaluate(self, solver: Solver, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        """What one iteration of a solver evaluates: ``step``, unless the solver splits the map."""

    @abstractmethod
    def readout(self, state: Tensor) -> Tensor:
        """Read logits ``[n, classes]`` from states."""

    def fused(
        self, tensors: Mapping[str, Tensor], solver: Solver, residual_norm: ResidualNorm, stop_norm: ResidualNorm
    ) -> FusedIteration | None:
        """What iterates rows in one call: step, residual and solver, and for label stops readout and movement.

        Args:
            tensors: contiguous ``[slots, ...]``: ``point``, ``injection``, and what the solver remembers.
            stop_norm: of movements, for label stops.

        None if there is no such thing for the solver.
        """
        return None

    def one_row(self, solver: Solver, residual_norm: ResidualNorm) -> OneRow | None:
        """What computes the whole life of a row that is alone in one call; None if there is no such thing for the solver."""
        return None


class TorchBackend(Backend):
    """PyTorch, eager unless ``step`` is to be compiled, whose first call then takes tens of seconds.

    The network must be in evaluation mode, or its rows are not independent; it is moved, not copied.
    """

    def __init__(
        self,
        network: ImplicitNetwork,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self._network = network.to(self.device, dtype)
        self._step: Callable[[Tensor, Tensor], Tensor] = torch.compile(network.step, dynamic=True) if compiled else network.step

    def inject(self, inputs: Tensor) -> Tensor:
        return self._network.inject(inputs)

    def initial_state(self, injection: Tensor) -> Tensor:
        return self._network.first_state(injection)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return self._step(state, injection)

    def evaluate(self, solver: Solver, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        return solver.evaluate(self._network, memory, point, injection) if solver.splits else self.step(point, injection)

    def readout(self, state: Tensor) -> Tensor:
        return self._network.readout(state)


class BFloat16Backend(TorchBackend):
    """Computes ``step`` in bfloat16 between float32 states, for rows that are far from their tolerance, and nothing else."""

    def __init__(self, network: ImplicitNetwork, device: torch.device) -> None:
        super().__init__(network, device, torch.bfloat16)
        self.dtype = torch.float32  # of the states

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return low_precision_step(self._network, state, injection)


class OnnxBackend(TorchBackend):
    """ONNX Runtime on the graphs in a version's folder, on the CPU."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        super().__init__(OnnxNetwork(folder, config))
        self._folder = folder
        self._classes = len(config.classes)

    def fused(
        self, tensors: Mapping[str, Tensor], solver: Solver, residual_norm: ResidualNorm, stop_norm: ResidualNorm
    ) -> FusedIteration | None:
        if not isinstance(solver, Picard | Mixing):
            return None
        mixing = solver if isinstance(solver, Mixing) else None

        def graph(judged: bool) -> ModelProto:
            step, readout = (read(self._folder / f"{name}.onnx") for name in ("step", "readout"))
            if not judged:
                return iteration(step, residual_norm, mixing=mixing)
            return iteration(step, residual_norm, mixing=mixing, readout=readout, movement_norm=stop_norm)

        return FusedIteration(tensors, mixing is not None, graph, self._classes)

    def one_row(self, solver: Solver, residual_norm: ResidualNorm) -> OneRow | None:
        if not isinstance(solver, Picard | Mixing):
            return None
        files = {name: self._folder / f"{name}.onnx" for name in MAPS}
        maps: dict[str, ModelProto] = {name: read(file) for name, file in files.items() if file.exists()}
        return OneRow(maps, residual_norm, solver if isinstance(solver, Mixing) else None)


class FastestBackend(Backend):
    """Hands each call to one of several backends of the same network.

    Args:
        backends: by name; the first computes what is not in the table, such as maps that a solver splits.
        table: for each map, the names for at most 1, 2, 4, 8, ... rows; the last holds for more, too.
        in_pairs: whether what a single row needs once is computed for two. Kernels for one row are often others, and round
            otherwise, which low precision makes visible.
    """

    def __init__(self, backends: Mapping[str, Backend], table: Mapping[Map, list[str]], *, in_pairs: bool = False) -> None:
        self._backends = list(backends.values())
        self._first = self._backends[0]
        self.device = self._first.device
        self.dtype = self._first.dtype
        self._in_pairs = in_pairs
        self._table = {name: [backends[fastest] for fastest in names] for name, names in table.items()}

    def inject(self, inputs: Tensor) -> Tensor:
        return self._once("inject", inputs)

    def initial_state(self, injection: Tensor) -> Tensor:
        return self._once("initial_state", injection)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return self._for("step", state).step(state, injection)

    def evaluate(self, solver: Solver, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        return self._first.evaluate(solver, memory, point, injection) if solver.splits else self.step(point, injection)

    def readout(self, state: Tensor) -> Tensor:
        return self._for("readout", state).readout(state)

    def fused(
        self, tensors: Mapping[str, Tensor], solver: Solver, residual_norm: ResidualNorm, stop_norm: ResidualNorm
    ) -> FusedIteration | None:
        found = (backend.fused(tensors, solver, residual_norm, stop_norm) for backend in self._backends)
        return next((one for one in found if one is not None), None)

    def one_row(self, solver: Solver, residual_norm: ResidualNorm) -> OneRow | None:
        found = (backend.one_row(solver, residual_norm) for backend in self._backends)
        return next((one for one in found if one is not None), None)

    def _once(self, name: Map, rows: Tensor) -> Tensor:
        """Compute a map that a row needs once, before it iterates."""
        compute: Compute = getattr(self._for(name, rows), name)
        if self._in_pairs and len(rows) == 1:
            return compute(rows.expand(2, *rows.shape[1:]).contiguous())[:1]
        return compute(rows)

    def _for(self, name: Map, rows: Tensor) -> Backend:
        row = self._table[name]
        return row[min((max(rows.shape[0], 1) - 1).bit_length(), len(row) - 1)]
