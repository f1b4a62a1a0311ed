"""A monotone operator network for images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb.architectures.initialisation import normal
from jfb.architectures.standardise import Standardise
from jfb.architectures.stem import build_stem
from jfb.contraction import pairwise_distances
from jfb.monotone_network import MonotoneNetwork

KERNEL_SIDE = 3


class MonotoneConv(MonotoneNetwork):
    """The single-convolution monotone operator network (Winston and Kolter, NeurIPS 2020), on the stem of ``implicit_resnet``.

    A and B are convolutions with circular padding: such a convolution is a matrix at every frequency of the discrete Fourier
    transform, so Peaceman-Rachford splitting can invert it (section 4.2 of that paper).

    Args:
        input_shape: ``(channels, height, width)``.
        classes: number of logits.
        mean, std: of the raw inputs: one number, or one per channel.
        channels, pool, blocks, slope: see ``build_stem``; the last of ``channels`` is the number of latent channels.
        monotonicity: m, positive; a smaller m allows a larger W and takes more iterations.
        average: average the latent state over positions before the classifier, instead of flattening it.
        dropout: share of the classifier's inputs to drop in training, in [0, 1).
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
        monotonicity: float = 1.0,
        average: bool = False,
        dropout: float = 0.0,
        slope: float = 0.1,
    ) -> None:
        super().__init__(monotonicity)
        if len(input_shape) != 3:
            raise ValueError(f"input.shape: must be [channels, height, width] for monotone_conv (got {list(input_shape)})")
        stem, (height, width) = build_stem(input_shape, channels, pool, blocks, slope)
        if min(height, width) < KERNEL_SIDE:
            raise ValueError(
                f"pool: must leave at least {KERNEL_SIDE}x{KERNEL_SIDE} of an image of shape {list(input_shape)} "
                f"(got {list(pool)}, which leaves {height}x{width})"
            )
        latent = channels[-1]
        self.average = average
        self.standardise = Standardise(input_shape, mean, std)
        self.stem = stem
        size = (latent * KERNEL_SIDE**2) ** 0.5
        self.A = nn.Parameter(normal(latent, latent, KERNEL_SIDE, KERNEL_SIDE, std=0.4 / size))
        self.B = nn.Parameter(normal(latent, latent, KERNEL_SIDE, KERNEL_SIDE, std=0.2 / size))
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(latent if average else latent * height * width, classes)
        self._sides = height, width
        self.constrain()

    def inject(self, inputs: Tensor) -> Tensor:
        injection: Tensor = self.stem(self.standardise(inputs))
        return injection

    def linear(self, state: Tensor) -> Tensor:
        return (
            (1 - self.monotonicity) * state
            - _convolve(_convolve(state, self.A), _transpose(self.A))
            + _convolve(state, self.skew())
        )

    def skew(self) -> Tensor:
        return self.B - _transpose(self.B)

    def matrices(self) -> Tensor:
        gain, skew = (_spectrum(kernel, self._sides) for kernel in (self.A, self.skew()))
        identity = torch.eye(gain.shape[-1], dtype=gain.dtype, device=gain.device)
        return (1 - self.monotonicity) * identity - gain.mH @ gain + skew

    def multiply(self, matrices: Tensor, state: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(state)
        by_frequency = spectrum.permute(2, 3, 1, 0)
        product = matrices @ by_frequency.flatten(0, 1)
        result: Tensor = torch.fft.irfft2(product.view(by_frequency.shape).permute(3, 2, 0, 1), s=self._sides)
        return result

    def readout(self, state: Tensor) -> Tensor:
        features = state.mean((2, 3)) if self.average else state.flatten(1)
        logits: Tensor = self.classify(self.dropout(features))
        return logits

    def readout_lipschitz(self) -> Tensor:
        distances = pairwise_distances(self.classify.weight)
        return distances / math.sqrt(math.prod(self._sides)) if self.average else distances


def _transpose(kernel: Tensor) -> Tensor:
    """The kernel of the transposed convolution."""
    return kernel.transpose(0, 1).flip(2, 3)


def _convolve(state: Tensor, kernel: Tensor) -> Tensor:
    edge = KERNEL_SIDE // 2
    return F.conv2d(F.pad(state, (edge, edge, edge, edge), mode="circular"), kernel)


def _spectrum(kernel: Tensor, sides: tuple[int, int]) -> Tensor:
    """The matrix of a convolution at each frequency of a real image, shape ``[k, out, in]``."""
    padded = F.pad(kernel, (0, sides[1] - KERNEL_SIDE, 0, sides[0] - KERNEL_SIDE)).roll(
        (-(KERNEL_SIDE // 2), -(KERNEL_SIDE // 2)), (2, 3)
    )
    # PyTorch's convolution is a correlation, so its spectrum is the conjugate.
    spectrum: Tensor = torch.fft.rfft2(padded)
    return spectrum.conj().permute(2, 3, 0, 1).flatten(0, 1)
