"""An implicit MLP for vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb.architectures.standardise import Standardise
from jfb.contraction import operator_norm_bound, pairwise_distances, scale_to_unit_norm
from jfb.network import ImplicitNetwork


class ImplicitMLP(ImplicitNetwork):
    """``u = γ · W φ(u) + Q(d)`` with ``‖W‖₂ ≤ 1``, φ a leaky ReLU: a contraction with factor γ for all data.

    Args:
        input_shape: ``(features,)``.
        classes: number of logits.
        mean, std: of the raw inputs: one number, or one per feature.
        width: number of latent entries.
        contraction: γ, in (0, 1).
        slope: slope of the leaky ReLU below zero, in [0, 1].
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        width: int = 64,
        contraction: float = 0.9,
        slope: float = 0.1,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(f"input.shape: must be [features] for implicit_mlp (got {list(input_shape)})")
        if not 0 < contraction < 1:
            raise ValueError(f"contraction: must be a number in (0, 1) (got {contraction})")
        if not 0 <= slope <= 1:
            raise ValueError(f"slope: must be a number in [0, 1] (got {slope})")
        self.contraction = contraction
        self.slope = slope
        self.standardise = Standardise(input_shape, mean, std)
        self.encode = nn.Sequential(nn.Linear(input_shape[0], width), nn.LeakyReLU(slope), nn.Linear(width, width))
        self.latent = nn.Linear(width, width, bias=False)
        self.classify = nn.Linear(width, classes)
        self.constrain()

    def inject(self, inputs: Tensor) -> Tensor:
        injection: Tensor = self.encode(self.standardise(inputs))
        return injection

    def initial_state(self, injection: Tensor) -> Tensor:
        return injection

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return torch.add(injection, self.latent(F.leaky_relu(state, self.slope)), alpha=self.contraction)

    def readout(self, state: Tensor) -> Tensor:
        logits: Tensor = self.classify(F.leaky_relu(state, self.slope))
        return logits

    def constrain(self) -> None:
        scale_to_unit_norm(self.latent.weight)

    def readout_lipschitz(self) -> Tensor:
        return pairwise_distances(self.classify.weight)  # the leaky ReLU before it has a slope of at most one

    def contraction_bound(self) -> float:
        return self.contraction * float(operator_norm_bound(self.latent.weight))
