"""Neural ODEs: classifiers whose features follow a differential equation. For comparison only, and not served."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from jfb.architectures.standardise import Standardise
from jfb.architectures.stem import build_stem
from training.errors import TrainingError

AUGMENTATION = 5
"""Dimensions that an augmented one adds, as Dupont et al. add to MNIST."""
TOLERANCE = 1e-3
"""Relative and absolute, of the integrator; what Dupont et al. take for images."""


class NeuralODE(nn.Module):
    """The features ``u(1)`` of ``du/dt = f(u, t)``, ``u(0) = Q(d)``, and a linear classifier (Chen et al., NeurIPS 2018).

    Integrated by torchdiffeq's dopri5, which takes one step size for the whole batch: rows are not independent, so such a network
    cannot be served as this project serves. Gradients by the adjoint method: memory does not grow with the number of evaluations.

    The stem is that of ``implicit_resnet`` for images and that of ``implicit_mlp`` for vectors, so that what is compared is what
    comes after it.

    Args:
        input_shape: ``(features,)`` or ``(channels, height, width)``.
        classes: number of logits.
        mean, std: of the raw inputs, a number each or one per channel.
        channels, pool, blocks: of the stem, for images; see ``build_stem``.
        width: of the stem, for vectors.
        average: average over positions before the classifier, instead of flattening.
        dropout: share of the classifier's inputs dropped in training, in [0, 1).
        slope: of the stem's leaky ReLUs.
        augmentation: dimensions (of images: channels) that start at zero beside the injection (Dupont et al., NeurIPS 2019).

    Raises:
        TrainingError: if torchdiffeq is not installed.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        channels: Sequence[int] = (32,),
        pool: Sequence[int] = (1,),
        blocks: int = 0,
        width: int = 64,
        average: bool = False,
        dropout: float = 0.0,
        slope: float = 0.1,
        augmentation: int = 0,
    ) -> None:
        super().__init__()
        self._integrate = integrator()
        self.standardise = Standardise(input_shape, mean, std)
        self.augmentation = augmentation
        self.average = average
        positions = 1
        if len(input_shape) == 3:
            self.stem, sides = build_stem(input_shape, channels, pool, blocks, slope)
            latent = channels[-1] + augmentation
            positions = 1 if average else sides[0] * sides[1]
            self.field = Field(nn.Conv2d(latent + 1, latent, 3, padding=1), nn.Conv2d(latent + 1, latent, 3, padding=1))
        else:
            self.stem = nn.Sequential(nn.Linear(input_shape[0], width), nn.LeakyReLU(slope), nn.Linear(width, width))
            latent = width + augmentation
            self.field = Field(nn.Linear(latent + 1, latent), nn.Linear(latent + 1, latent))
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(latent * positions, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map raw inputs ``[n, *input_shape]`` to logits ``[n, classes]``."""
        features: Tensor = self.stem(self.standardise(inputs))
        if self.augmentation:
            zeros = features.new_zeros(len(features), self.augmentation, *features.shape[2:])
            features = torch.cat([features, zeros], 1)
        times = torch.tensor([0.0, 1.0], dtype=features.dtype, device=features.device)
        end = self._integrate(self.field, features, times, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")[-1]
        if self.average and end.dim() == 4:
            end = end.mean((2, 3))
        logits: Tensor = self.classify(self.dropout(end.flatten(1)))
        return logits


def integrator() -> Callable[..., Tensor]:
    """What integrates: torchdiffeq's, with the adjoint method for gradients.

    Raises:
        TrainingError: if torchdiffeq is not installed.
    """
    try:
        with torch.device("cpu"):  # it makes its tables when it is imported, which must not be on the meta device
            import torchdiffeq
    except ImportError as error:
        raise TrainingError("neural ODEs are integrated by torchdiffeq, which is missing: pip install torchdiffeq") from error
    integrate: Callable[..., Tensor] = torchdiffeq.odeint_adjoint
    return integrate


class Field(nn.Module):
    """``f(u, t) = L₂ [t, tanh(L₁ [t, u])]``: smooth, because the integrator's steps are as long as its derivatives allow.

    Attributes:
        evaluations: how often it was evaluated; whoever counts sets it to zero.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.evaluations = 0

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        self.evaluations += 1
        clock = time.to(state.dtype).expand(len(state), 1, *state.shape[2:])
        field: Tensor = self.second(torch.cat([clock, torch.tanh(self.first(torch.cat([clock, state], 1)))], 1))
        return field
