"""The implicit ResNets of the JFB paper's authors, so that their published weights can be served."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from jfb.architectures.standardise import Standardise
from jfb.network import ImplicitNetwork

SLOPE = 0.1
EPSILON = 1e-5
"""Added to the variance by batch normalisation."""


class AuthorsResNet(ImplicitNetwork):
    """``u = γ · BN(x + φφ C₂ φ C₁ x)`` with ``x = u + Q(d)`` (Wu Fung et al., AAAI 2022: their MNIST, SVHN, CIFAR-10 networks).

    The batch normalisation in the latent block has fixed statistics, in training too, so that rows stay independent. The map
    is not a contraction by construction: the MNIST network has ``‖∂T/∂u‖₂`` of about 1.35 at its fixed points, and converges
    because its spectral radius is about 0.84.

    Parameters have the names in the authors' published files.

    Args:
        input_shape: ``(channels, height, width)``.
        classes: number of logits.
        stem: ``plain`` (two convolutions and a max-pool, their MNIST network: 32 latent channels on a third of the
            height and width) or ``resnet`` (three residual blocks, SVHN and CIFAR-10: 64 channels on a quarter).
        mean, std: of pixels / 255 (raw pixels are in [0, 255]): one number, or one per channel.
        scale: γ, the factor in front of the block.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        stem: Literal["plain", "resnet"] = "plain",
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        scale: float = 0.9,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"input.shape: must be [channels, height, width] for authors_resnet (got {list(input_shape)})")
        if stem not in ("plain", "resnet"):
            raise ValueError(f"stem: must be 'plain' or 'resnet' (got {stem!r})")
        colours, height, width = input_shape
        shrink = 3 if stem == "plain" else 4
        latent = 32 if stem == "plain" else 64
        if min(height, width) < 3 * shrink or (stem == "resnet" and (height % 4 or width % 4)):
            raise ValueError(f"input.shape: must fit a {stem} stem (got {list(input_shape)})")
        self.stem = stem
        self.scale = scale
        self.standardise = Standardise(input_shape, mean, std)
        if stem == "plain":
            self.conv_d1 = nn.Conv2d(colours, 16, 3, padding=1)
            self.bn_1 = nn.BatchNorm2d(16)
            self.conv_d2 = nn.Conv2d(16, 32, 3, padding=1)
            self.bn_2 = nn.BatchNorm2d(32)
        else:
            self.conv1 = nn.Conv2d(colours, 16, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(AuthorsBlock(16, 16, stride=1))
            self.layer2 = nn.Sequential(AuthorsBlock(16, 32, stride=2))
            self.layer3 = nn.Sequential(AuthorsBlock(32, 64, stride=2))
        block = (nn.Conv2d(latent, latent, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Identity())
        again = (nn.Conv2d(latent, latent, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Identity())
        self.latent_convs = nn.ModuleList([nn.Sequential(*block, *again)])
        self.lat_batch_norm = nn.ModuleList([FrozenBatchNorm2d(latent)])
        self.conv_y = nn.Conv2d(latent, 16, 3)
        self.fc_y = nn.Linear(16 * (height // shrink - 2) * (width // shrink - 2), classes, bias=False)

    def inject(self, inputs: Tensor) -> Tensor:
        # Divided first, as the authors do: folding 255 into mean and std rounds differently, which at a tolerance of
        # 1e-4 changes the iteration count of one image in a hundred.
        features: Tensor = self.standardise(inputs / 255)
        if self.stem == "plain":
            features = F.max_pool2d(_activate(self.bn_1(self.conv_d1(features))), 3)
            return _activate(self.bn_2(self.conv_d2(features)))
        features = self.layer1(_activate(self.bn1(self.conv1(features))))
        features = self.layer3(self.layer2(features))
        return features

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        hidden = state + injection
        for block, normalise in zip(self.latent_convs, self.lat_batch_norm, strict=True):
            hidden = normalise(hidden + _activate(block(hidden)))
        return self.scale * hidden

    def readout(self, state: Tensor) -> Tensor:
        logits: Tensor = self.fc_y(_activate(self.conv_y(state)).flatten(1))
        return logits

    def folded(self) -> ImplicitNetwork:
        return FoldedAuthorsResNet(self)


class FoldedAuthorsResNet(ImplicitNetwork):
    """An ``AuthorsResNet`` in evaluation mode with every batch normalisation folded, and the scale γ with the one in ``step``.

    Args:
        network: the network to fold; it is copied.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: AuthorsResNet) -> None:
        super().__init__()
        self.network = network = deepcopy(network).eval().requires_grad_(False)
        self.learned_start = network.learned_start
        if network.stem == "plain":
            _fold(network, ("conv_d1", "bn_1"), ("conv_d2", "bn_2"))
        else:
            _fold(network, ("conv1", "bn1"))
            for stage in (network.layer1, network.layer2, network.layer3):
                _fold(stage[0], ("conv_d1", "bn1"), ("conv_d2", "bn2"))
        (normalise,) = network.lat_batch_norm
        assert isinstance(normalise, FrozenBatchNorm2d)
        scale = network.scale * torch.rsqrt(normalise.running_var + EPSILON)
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", (-normalise.running_mean * scale).view(1, -1, 1, 1))
        (block,) = network.latent_convs
        self.first, self.second = (part for part in block.children() if isinstance(part, nn.Conv2d))

    def inject(self, inputs: Tensor) -> Tensor:
        return self.network.inject(inputs)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        hidden = state + injection
        residual = self.second(F.leaky_relu_(self.first(hidden), SLOPE))
        # Two leaky ReLUs in a row are one, with the slope squared.
        return torch.addcmul(self.shift, F.leaky_relu_(residual, SLOPE**2).add_(hidden), self.scale)

    def readout(self, state: Tensor) -> Tensor:
        return self.network.readout(state)


def _fold(module: nn.Module, *pairs: tuple[str, str]) -> None:
    """Fold batch normalisations into convolutions, given as pairs of a module's attribute names."""
    for convolution, normalise in pairs:
        fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, normalise))
        setattr(module, convolution, fused)
        setattr(module, normalise, nn.Identity())


class AuthorsBlock(nn.Module):
    """A residual block whose shortcut, where the shape changes, takes every second pixel and pads channels with zeros."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (after - before) // 2
        self.conv_d1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv_d2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, features: Tensor) -> Tensor:
        shortcut = F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        residual = self.bn2(self.conv_d2(_activate(self.bn1(self.conv_d1(features)))))
        return _activate(residual + shortcut)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and without weights: an affine map that is the same for every batch."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        return F.batch_norm(features, self.running_mean, self.running_var, training=False, eps=EPSILON)


def _activate(features: Tensor) -> Tensor:
    return F.leaky_relu(features, SLOPE)
