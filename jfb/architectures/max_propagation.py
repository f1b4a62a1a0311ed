"""A network that propagates maxima from pixel to pixel, for images whose answer has to be reached step by step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb.architectures.standardise import Standardise
from jfb.config import ResidualNorm
from jfb.network import ImplicitNetwork

SLOPE = 0.1
"""Of the leaky ReLUs below zero."""


class MaxPropagation(ImplicitNetwork):
    """``u = max(b, γ · maxpool₃ₓ₃(g ⊙ u))``: each pixel takes the largest value in reach, if a gate lets it pass.

    The sources b ≥ 0 and the gates g in (0, 1) are computed from the image, pixel by pixel, and the logits from a maximum over
    pixels. So information moves by one pixel per iteration, along whatever the gates leave open, and the same
    weights take images of any size. In the family of value iteration networks (Tamar et al., NeurIPS 2016), with
    gates in place of transition probabilities; on a maze it comes close to a flood fill.

    A maximum changes by no more than its largest argument does, so the step is a contraction with factor γ in the
    *maximum norm*, whatever the weights. In the L2 norm it need not be one: a value may be copied to nine pixels. The
    iteration starts at b and ends exactly: a value only shrinks on its way, so the largest that reaches a pixel came by a path
    without loops, and after as many iterations as the longest of these paths has steps nothing changes any more.

    Args:
        input_shape: ``(channels, height, width)``; height and width do not change the weights.
        classes: number of logits.
        mean, std: of the raw inputs, a number each or one per channel.
        channels: of the state.
        contraction: γ, in (0, 1).
        features: of the readout, before the maximum over the pixels.
    """

    bound_norm = ResidualNorm.MAX

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        mean: float | Sequence[float] = 127.5,
        std: float | Sequence[float] = 127.5,
        channels: int = 32,
        contraction: float = 0.98,
        features: int = 64,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"input.shape: must be [channels, height, width] for max_propagation (got {list(input_shape)})")
        if min(channels, features) < 1:
            raise ValueError(f"channels, features: must be at least 1 (got {channels} and {features})")
        if not 0 < contraction < 1:
            raise ValueError(f"contraction: must be a number in (0, 1) (got {contraction})")
        self.contraction = contraction
        self.standardise = Standardise(input_shape, mean, std)
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], channels, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(channels, channels, 1), nn.LeakyReLU(SLOPE)
        )
        self.source = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.read = nn.Conv2d(channels, features, 1)
        self.classify = nn.Linear(features, classes)

    def inject(self, inputs: Tensor) -> Tensor:
        """Compute b and g, joined in dimension 1: ``[n, 2 · channels, height, width]``."""
        features = self.stem(self.standardise(inputs))
        # Gates are open at first, so that something arrives from which to learn where to close them.
        return torch.cat([F.relu(self.source(features)), torch.sigmoid(self.gate(features) + 2)], 1)

    def initial_state(self, injection: Tensor) -> Tensor:
        return injection.chunk(2, 1)[0].clone()

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        source, gate = injection.chunk(2, 1)
        return torch.maximum(source, self.contraction * _largest_in_reach(gate * state))

    def readout(self, state: Tensor) -> Tensor:
        logits: Tensor = self.classify(F.leaky_relu(self.read(state), SLOPE).amax((2, 3)))
        return logits

    def contraction_bound(self) -> float:
        return self.contraction

    def readout_lipschitz(self) -> Tensor:
        # A feature changes by at most the absolute sum of its weights times what the state does, before and after leaky ReLU and
        # maximum; a difference of logits by what the features do, weighted.
        steepest = self.read.weight.detach().double().abs().sum((1, 2, 3))
        weights = self.classify.weight.detach().double()
        bounds: Tensor = ((weights[:, None] - weights[None]).abs() * steepest).sum(2)
        return bounds.to(self.classify.weight.dtype)


def _largest_in_reach(values: Tensor) -> Tensor:
    """Max-pooling over 3 by 3 pixels with stride 1; a tenth of the time of ``max_pool2d`` on a CPU, in evaluation."""
    height, width = values.shape[2:]
    padded = F.pad(values, (1, 1, 1, 1), value=float("-inf"))
    rows = torch.maximum(torch.maximum(padded[:, :, :height], padded[:, :, 1 : height + 1]), padded[:, :, 2:])
    return torch.maximum(torch.maximum(rows[..., :width], rows[..., 1 : width + 1]), rows[..., 2:])
