"""Small networks with known answers."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from jfb import ImplicitNetwork
from jfb.architectures import ImplicitMLP, ImplicitResNet, MaxPropagation, MonotoneConv, MonotoneMLP
from jfb.monotone_network import MonotoneNetwork


class Affine(ImplicitNetwork):
    """``u = A u + q``: its fixed point is ``(I − A)⁻¹ q``, and one row's difficulty is its injection's scale."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def inject(self, inputs: Tensor) -> Tensor:
        return inputs

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return state @ self.matrix.T + injection

    def readout(self, state: Tensor) -> Tensor:
        return state


def affine(factor: float = 0.7, size: int = 4, seed: int = 0) -> Affine:
    """A random affine contraction with L2 factor ``factor``, float64."""
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Affine(factor * matrix / torch.linalg.matrix_norm(matrix, 2))


def small_resnet(*, seed: int = 0, contraction: float = 0.9) -> ImplicitResNet:
    """A random implicit ResNet on 1x6x6 in [0, 1], in evaluation mode, float64, stiff enough that rows differ."""
    torch.manual_seed(seed)
    network = ImplicitResNet((1, 6, 6), 3, mean=0.5, std=0.3, channels=(4,), pool=(2,), contraction=contraction)
    with torch.no_grad():
        network.latent.weight.mul_(50)  # then constrained: at the bound, so it contracts as slowly as it may
    network.constrain()
    return network.double().eval()


def small_mlp(*, seed: int = 0, contraction: float = 0.9, width: int = 6) -> ImplicitMLP:
    """A random implicit MLP on 5 features, in evaluation mode, float64, with its latent weights at the bound."""
    torch.manual_seed(seed)
    network = ImplicitMLP((5,), 3, width=width, contraction=contraction)
    with torch.no_grad():
        network.latent.weight.mul_(50)
    network.constrain()
    return network.double().eval()


def small_max_propagation(*, seed: int = 0, contraction: float = 0.9) -> MaxPropagation:
    """A random max-propagation network on images in [0, 1], in evaluation mode, float64, in which values travel some pixels."""
    torch.manual_seed(seed)
    network = MaxPropagation((1, 6, 6), 3, mean=0.5, std=0.3, channels=4, features=5, contraction=contraction)
    with torch.no_grad():
        network.source.weight.mul_(10)
        network.source.bias.sub_(1)
    return network.double().eval()


def small_monotone_mlp(*, seed: int = 0, monotonicity: float = 1.0, scale: float = 2.0, width: int = 6) -> MonotoneMLP:
    """A random dense monotone operator network on 5 features, in evaluation mode, float64."""
    torch.manual_seed(seed)
    return _scaled(MonotoneMLP((5,), 3, width=width, monotonicity=monotonicity), scale)


def small_monotone_conv(
    *, seed: int = 0, monotonicity: float = 1.0, scale: float = 2.0, sides: tuple[int, int] = (6, 8)
) -> MonotoneConv:
    """A random convolutional one on images in [0, 1] whose latent sides are halves, in evaluation mode, float64."""
    torch.manual_seed(seed)
    network = MonotoneConv((1, *sides), 3, mean=0.5, std=0.3, channels=(4,), pool=(2,), monotonicity=monotonicity)
    return _scaled(network, scale)


Monotone = TypeVar("Monotone", bound=MonotoneNetwork)


def _scaled(network: Monotone, scale: float) -> Monotone:
    """With larger weights, so that ``φ(W u + q)`` alone need not contract."""
    with torch.no_grad():
        network.A.mul_(scale)
        network.B.mul_(scale)
    network.double().constrain()
    return network.eval()
