"""Standardise: normalise raw inputs, as the first layer of a network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """``(inputs − mean) / std``, with one number each, or one per channel (dimension 1), in the units of the raw inputs.

    Raises:
        ValueError: for another number of values, values that are not finite, and a ``std`` that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, input_shape: Sequence[int], mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(values, dtype=torch.float32, device="cpu").flatten()
            if tensor.numel() not in (1, input_shape[0]):
                raise ValueError(f"{name}: must be 1 or {input_shape[0]} numbers, one per channel (got {tensor.numel()})")
            if not bool(tensor.isfinite().all()) or (name == "std" and not bool((tensor > 0).all())):
                raise ValueError(f"{name}: must be {'positive and ' * (name == 'std')}finite (got {values})")
            shape = (1, -1) + (1,) * (len(input_shape) - 1)
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32).flatten().view(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std
