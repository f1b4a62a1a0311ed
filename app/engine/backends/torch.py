"""The network as it is, run by PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor

from app.engine.backends.backend import Backend
from jfb import ImplicitNetwork
from jfb.solvers import Memory, Solver


class TorchBackend(Backend):
    """PyTorch, eager unless it is to be compiled.

    Args:
        network: in evaluation mode, or its rows are not independent; it is moved, not copied.
        device: where to compute.
        dtype: what to compute in; tests use float64.
        compiled: whether ``step`` is compiled; the first call then takes tens of seconds.
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
        return self._network.initial_state(injection)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return self._step(state, injection)

    def evaluate(self, solver: Solver, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        if not solver.splits:
            return self.step(point, injection)
        return solver.evaluate(self._network, memory, point, injection)

    def readout(self, state: Tensor) -> Tensor:
        return self._network.readout(state)
