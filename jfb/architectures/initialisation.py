"""Random initial weights."""

import torch
from torch import Tensor


def normal(*shape: int, std: float) -> Tensor:
    """Draw from a normal distribution with mean zero.

    On the meta device, where ``jfb.load`` builds a network for its shapes alone, nothing is drawn: PyTorch would import its
    compiler to do so, for five seconds of processor time.

    Args:
        shape: of the tensor.
        std: standard deviation.
    """
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_() * std
