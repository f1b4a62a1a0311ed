"""The stem: the convolutions from an image to its injection, computed once per input."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


def build_stem(
    input_shape: Sequence[int], channels: Sequence[int], pool: Sequence[int], blocks: int, slope: float
) -> tuple[nn.Sequential, tuple[int, int]]:
    """Build stages of convolutions with batch normalisation, residual blocks and max-pooling, one for each of ``channels``.

    Batch normalisation is in the stem only, not in the iterated block: here it is a fixed affine map once the network is trained.

    Args:
        input_shape: ``(channels, height, width)``.
        channels: channels of the stages.
        pool: max-pooling factor at the end of each stage, as many as ``channels``; 1 means none.
        blocks: residual blocks in each stage, after its first convolution.
        slope: slope of the leaky ReLUs below zero, in [0, 1].

    Returns:
        The stem, and the height and width of its output.

    Raises:
        ValueError: for an argument out of range, and if pooling leaves no pixel.
    """
    if not channels or len(channels) != len(pool) or min(*channels, *pool) < 1:
        raise ValueError(f"channels, pool: must be equally many positive integers (got {channels} and {pool})")
    if not 0 <= slope <= 1:
        raise ValueError(f"slope: must be a number in [0, 1] (got {slope})")
    height, width = input_shape[1:]
    for factor in pool:
        height, width = height // factor, width // factor
    if min(height, width) < 1:
        raise ValueError(f"pool: must leave at least 1x1 of an image of shape {list(input_shape)} (got {list(pool)})")
    stem: list[nn.Module] = []
    for (before, after), factor in zip(pairwise((input_shape[0], *channels)), pool, strict=True):
        stem += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(slope)]
        stem += [StemBlock(after, slope) for _ in range(blocks)]
        stem += [nn.MaxPool2d(factor)] if factor > 1 else []
    return nn.Sequential(*stem), (height, width)


class StemBlock(nn.Module):
    """A residual block: ``φ(x + BN(C₂ φ(BN(C₁ x))))``."""

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(slope),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.leaky_relu(features + self.body(features), self.slope)
