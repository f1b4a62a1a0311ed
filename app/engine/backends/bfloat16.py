"""The step in bfloat16, for rows that are far from their tolerance."""

import torch
from torch import Tensor

from app.engine.backends.backend import Backend
from jfb import ImplicitNetwork
from jfb.mixed_precision import low_precision_step


class BFloat16Backend(Backend):
    """Computes ``step`` in bfloat16 between float32 states; the other maps are nobody's business here.

    Args:
        network: in evaluation mode; it is moved and cast, not copied.
        device: where to compute.
    """

    def __init__(self, network: ImplicitNetwork, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float32
        self._network = network.to(device, torch.bfloat16)

    def inject(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError("rows are injected in float32")

    def initial_state(self, injection: Tensor) -> Tensor:
        raise NotImplementedError("rows begin in float32")

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return low_precision_step(self._network, state, injection)

    def readout(self, state: Tensor) -> Tensor:
        raise NotImplementedError("answers are read out in float32")
