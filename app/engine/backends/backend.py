"""What a backend is: the maps of an implicit network, on a device."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from jfb.solvers import Memory, Solver


class Backend(ABC):
    """Computes the maps of one network for the engine; tensors live on ``device`` and have type ``dtype``.

    Rows are independent: nothing that a row computes depends on another row, or on how many there are. What a map
    returns may be overwritten when the same map is called next, so that a backend can reuse its memory.
    """

    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def inject(self, inputs: Tensor) -> Tensor:
        """Map raw inputs ``[n, *input_shape]`` to the injection ``[n, ...]``."""

    @abstractmethod
    def initial_state(self, injection: Tensor) -> Tensor:
        """Return where the iteration starts, ``[n, *state_shape]``."""

    @abstractmethod
    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        """Apply the fixed-point map once: ``[n, *state_shape]`` to the same shape."""

    def evaluate(self, solver: Solver, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        """What one iteration of a solver evaluates: ``step``, unless the solver splits the map."""
        if solver.splits:
            raise NotImplementedError(f"{type(self).__name__} computes step as a whole, which {type(solver).__name__} splits")
        return self.step(point, injection)

    @abstractmethod
    def readout(self, state: Tensor) -> Tensor:
        """Read logits ``[n, classes]`` from states."""
