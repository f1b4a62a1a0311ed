"""An implicit ResNet for images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb.architectures.standardise import Standardise
from jfb.architectures.stem import build_stem
from jfb.contraction import operator_norm_bound, pairwise_distances, scale_to_unit_norm
from jfb.network import ImplicitNetwork


class ImplicitResNet(ImplicitNetwork):
    """A convolutional stem, one residual layer iterated to its fixed point, and a linear classifier.

    ``u = φ(Q(d) + γ · C u)`` with C a convolution of operator norm at most one (spectral normalisation) and φ a leaky
    ReLU: a contraction with factor γ for all data.

    One convolution, not two: with norms at most one, the typical gain of a chain of two is a few hundredths, and the fixed point
    then hardly differs from its first iterate. C starts near an orthogonal map for the same reason.

    Args:
        input_shape: ``(channels, height, width)``.
        classes: number of logits.
        mean, std: of the raw inputs: one number, or one per channel.
        channels: channels of the stem's stages; the last is the number of latent channels.
        pool: max-pooling factor at the end of each stage, as many as ``channels``; 1 means none.
        blocks: residual blocks in each stage, after its first convolution.
        contraction: γ, in (0, 1).
        average: average the latent state over positions before the classifier, instead of flattening it.
        dropout: share of the classifier's inputs to drop in training, in [0, 1).
        slope: slope of the leaky ReLUs below zero, in [0, 1].
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        mean: float | Sequence[float] = 127.5,
        std: float | Sequence[float] = 127.5,
        channels: Sequence[int] = (32,),
        pool: Sequence[int] = (1,),
        blocks: int = 0,
        contraction: float = 0.9,
        average: bool = False,
        dropout: float = 0.0,
        slope: float = 0.1,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"input.shape: must be [channels, height, width] for implicit_resnet (got {list(input_shape)})")
        if not 0 < contraction < 1:
            raise ValueError(f"contraction: must be a number in (0, 1) (got {contraction})")
        stem, (height, width) = build_stem(input_shape, channels, pool, blocks, slope)
        latent = channels[-1]
        self.contraction = contraction
        self.average = average
        self.positions = height * width
        self.slope = slope
        self.standardise = Standardise(input_shape, mean, std)
        self.stem = stem
        self.latent = nn.Conv2d(latent, latent, 3, padding=1, bias=False)
        _near_orthogonal(self.latent.weight)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(latent if average else latent * height * width, classes)
        self.constrain()

    def inject(self, inputs: Tensor) -> Tensor:
        injection: Tensor = self.stem(self.standardise(inputs))
        return injection

    def initial_state(self, injection: Tensor) -> Tensor:
        return injection

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return F.leaky_relu(torch.add(injection, self.latent(state), alpha=self.contraction), self.slope)

    def readout(self, state: Tensor) -> Tensor:
        features = state.mean((2, 3)) if self.average else state.flatten(1)
        logits: Tensor = self.classify(self.dropout(features))
        return logits

    def constrain(self) -> None:
        scale_to_unit_norm(self.latent.weight)

    def readout_lipschitz(self) -> Tensor:
        distances = pairwise_distances(self.classify.weight)
        return distances / math.sqrt(self.positions) if self.average else distances

    def contraction_bound(self) -> float:
        return self.contraction * float(operator_norm_bound(self.latent.weight))


def _near_orthogonal(kernel: Tensor) -> None:
    """Fill a kernel with an orthogonal map of the channels, the same at every position, plus a little noise."""
    if kernel.is_meta:  # there is nothing to fill: see jfb.architectures.initialisation
        return
    with torch.no_grad():
        nn.init.normal_(kernel, std=0.02)
        kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] += nn.init.orthogonal_(torch.empty_like(kernel[:, :, 0, 0]))
