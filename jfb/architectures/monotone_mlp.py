"""A monotone operator network for vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb.architectures.initialisation import normal
from jfb.architectures.standardise import Standardise
from jfb.contraction import pairwise_distances
from jfb.monotone_network import MonotoneNetwork


class MonotoneMLP(MonotoneNetwork):
    """The dense monotone operator network (Winston and Kolter, NeurIPS 2020), with the same encoder as ``implicit_mlp``.

    Args:
        input_shape: ``(features,)``.
        classes: number of logits.
        mean, std: of the raw inputs: one number, or one per feature.
        width: number of latent entries.
        monotonicity: m, positive; a smaller m allows a larger W and takes more iterations.
        slope: slope of the encoder's leaky ReLU below zero, in [0, 1].
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        width: int = 64,
        monotonicity: float = 1.0,
        slope: float = 0.1,
    ) -> None:
        super().__init__(monotonicity)
        if len(input_shape) != 1:
            raise ValueError(f"input.shape: must be [features] for monotone_mlp (got {list(input_shape)})")
        if not 0 <= slope <= 1:
            raise ValueError(f"slope: must be a number in [0, 1] (got {slope})")
        self.standardise = Standardise(input_shape, mean, std)
        self.encode = nn.Sequential(nn.Linear(input_shape[0], width), nn.LeakyReLU(slope), nn.Linear(width, width))
        self.A = nn.Parameter(normal(width, width, std=0.4 / width**0.5))  # a norm of about 0.8
        self.B = nn.Parameter(normal(width, width, std=0.2 / width**0.5))
        self.classify = nn.Linear(width, classes)
        self.constrain()

    def inject(self, inputs: Tensor) -> Tensor:
        injection: Tensor = self.encode(self.standardise(inputs))
        return injection

    def linear(self, state: Tensor) -> Tensor:
        return (1 - self.monotonicity) * state - F.linear(state, self.A) @ self.A + F.linear(state, self.skew())

    def skew(self) -> Tensor:
        return self.B - self.B.mT

    def matrices(self) -> Tensor:
        identity = torch.eye(len(self.A), dtype=self.A.dtype, device=self.A.device)
        return ((1 - self.monotonicity) * identity - self.A.mT @ self.A + self.skew()).unsqueeze(0)

    def multiply(self, matrices: Tensor, state: Tensor) -> Tensor:
        return F.linear(state, matrices[0])

    def readout(self, state: Tensor) -> Tensor:
        logits: Tensor = self.classify(state)
        return logits

    def readout_lipschitz(self) -> Tensor:
        return pairwise_distances(self.classify.weight)
