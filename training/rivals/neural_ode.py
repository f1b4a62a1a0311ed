"""Neural ODE: a classifier whose features follow a differential equation. For comparison only; not served."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb.architectures.standardise import Standardise
from jfb.architectures.stem import build_stem
from training.data import Split
from training.errors import TrainingError
from training.loop.objective import Objective, batch_sums
from training.loop.score import Score
from training.recipe import Recipe

AUGMENTATION = 5
"""Dimensions that an augmented neural ODE adds, as in Dupont et al. for MNIST."""
TOLERANCE = 1e-3
"""Of the integrator, relative and absolute, as in Dupont et al. for images."""


class NeuralODE(nn.Module):
    """The features ``u(1)`` of ``du/dt = f(u, t)``, ``u(0) = Q(d)``, and a linear classifier (Chen et al., NeurIPS 2018).

    Integrated by torchdiffeq's dopri5, which has one step size for the whole batch: rows are not independent, so this project
    cannot serve such a network. Gradients use the adjoint method: memory does not grow with the number of evaluations.

    The stem is that of ``implicit_resnet`` for images and of ``implicit_mlp`` for vectors, so that only what follows it differs.

    Args:
        input_shape: ``(features,)`` or ``(channels, height, width)``.
        classes: number of logits.
        mean, std: of the raw inputs, one number or one per channel.
        channels, pool, blocks: of the stem, for images; see ``build_stem``.
        width: of the stem, for vectors.
        average: average over positions before the classifier, instead of flattening.
        dropout: fraction of the classifier's inputs dropped in training, in [0, 1).
        slope: of the stem's leaky ReLUs.
        augmentation: extra dimensions (for images: channels) that start at zero (Dupont et al., NeurIPS 2019).

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
    """Return torchdiffeq's integrator with gradients by the adjoint method.

    Raises:
        TrainingError: if torchdiffeq is not installed.
    """
    try:
        import torchdiffeq
    except ImportError as error:
        raise TrainingError("neural ODEs need torchdiffeq, which is not installed: pip install torchdiffeq") from error
    integrate: Callable[..., Tensor] = torchdiffeq.odeint_adjoint
    return integrate


class Field(nn.Module):
    """The vector field ``f(u, t) = L₂ [t, tanh(L₁ [t, u])]``; smooth, so that the integrator can take long steps.

    Attributes:
        evaluations: number of evaluations so far; callers reset it to zero.
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


class NeuralODEObjective(Objective[NeuralODE]):
    """Cross entropy of a neural ODE; what is reported as iterations are evaluations of its field."""

    def __init__(self, network: NeuralODE, recipe: Recipe) -> None:
        super().__init__(network)
        self.label_smoothing = recipe.optimisation.label_smoothing

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.network.field.evaluations = 0
        logits = self.network(inputs)
        evaluations = torch.tensor(self.network.field.evaluations * len(labels), device=logits.device)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        return loss, batch_sums(loss, logits, labels, evaluations)

    @torch.no_grad()
    def score(self, network: NeuralODE, part: Split, device: torch.device, *, batch_size: int = 500) -> Score:
        network.eval()
        loss = correct = evaluations = 0.0
        for inputs, labels in zip(
            torch.split(part.inputs, batch_size), torch.split(part.labels.to(device), batch_size), strict=True
        ):
            network.field.evaluations = 0
            logits = network(inputs.to(device, torch.float32))
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
            evaluations += network.field.evaluations * len(labels)
        rows = len(part.labels)
        return Score(loss / rows, correct / rows, evaluations / rows, converged=1.0)
