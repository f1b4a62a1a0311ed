"""TF32Backend: float32, with the factors of its products rounded to TF32."""

from threading import RLock

import torch
from torch import Tensor

from app.engine.backends.backend import TorchBackend
from jfb.mixed_precision import tensor_float_32

FULL_PRECISION = RLock()
"""Held by a thread in which float32 must not be rounded to TF32, as another thread may be loading a model that does so."""


class TF32Backend(TorchBackend):
    """Computes ``step`` in TF32 for rows that are far from their tolerance, and nothing else.

    For steps that are captured in CUDA graphs: to replay one allows nothing. So only the thread that loads a model ever allows
    TF32, and what it computes itself in full precision, such as the reference of all backends, is of full precision.
    """

    roundoff = 2.0**-10

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        with FULL_PRECISION, tensor_float_32():
            return super().step(state, injection)

    @staticmethod
    def is_supported(device: torch.device) -> bool:
        """Whether a device has matrix units for it: GPUs of NVIDIA's Ampere generation and later."""
        return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
