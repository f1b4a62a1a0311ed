"""Training of neural ODEs, by a recipe's schedule, as ``training.train`` trains networks that iterate."""

import math
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from training.augment import build_augmentation
from training.averaging import averaging
from training.data import Data
from training.errors import NonFiniteLossError
from training.neural_ode import NeuralODE
from training.recipe import Recipe
from training.sources import Split
from training.train import decayed, epoch_seed, learning_rate_factor, step_seed, with_normalisation


@dataclass(frozen=True)
class TrainedNeuralODE:
    """What is known of a trained one. Accuracies are shares."""

    network: NeuralODE
    """In evaluation mode; the averaged weights at the end of the epoch that was best on the validation part."""
    accuracy_by_seconds: list[tuple[float, float]]
    """Seconds of training and validation accuracy, an epoch each."""
    train_evaluations: float
    """Of the field for a batch, forward, a mean over the last epoch."""
    test_accuracy: float
    test_evaluations: float


def train_neural_ode(
    recipe: Recipe, arguments: dict[str, Any], data: Data, *, device: torch.device, console: Console
) -> TrainedNeuralODE:
    """Train on the training part, watch on the validation part, report on the test part.

    Args:
        recipe: for data, schedule and augmentation.
        arguments: of ``NeuralODE``; mean and standard deviation are measured.

    Raises:
        NonFiniteLossError: as soon as the loss is NaN or infinite.
        TrainingError: if torchdiffeq is not installed.
    """
    settings = recipe.optimisation
    torch.manual_seed(settings.seed)
    spec = with_normalisation(recipe.network.model_copy(update={"arguments": arguments}), data.train)
    options: dict[str, Any] = spec.arguments
    network = NeuralODE(data.input.shape, len(data.classes), **options).to(device)
    if len(data.input.shape) == 3:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster so
    average = averaging(network, settings.averaging)
    averaged = cast(NeuralODE, average.module)
    augment = build_augmentation(recipe.augment)
    size = min(settings.batch_size, len(data.train.labels))
    steps = len(data.train.labels) // size
    optimiser = torch.optim.AdamW(decayed(network, settings.weight_decay), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step / (settings.epochs * steps), settings.warm_up)
    )
    history: list[tuple[float, float]] = []
    best_weights: dict[str, Tensor] = {}
    train_evaluations = math.nan
    began = time.perf_counter()
    for epoch in range(1, settings.epochs + 1):
        network.train()
        evaluations = 0
        order = torch.randperm(len(data.train.labels), generator=torch.Generator().manual_seed(epoch_seed(settings, epoch)))
        for step in range(steps):
            torch.manual_seed(step_seed(settings, epoch, step))
            rows = order[step * size : (step + 1) * size]
            inputs, labels = augment(data.train.inputs[rows].to(device, torch.float32)), data.train.labels[rows].to(device)
            network.field.evaluations = 0
            loss = F.cross_entropy(network(inputs), labels, label_smoothing=settings.label_smoothing)
            evaluations += network.field.evaluations
            if not math.isfinite(float(loss.detach())):
                raise NonFiniteLossError(
                    f"{recipe.name}: neural ODE: epoch {epoch}, step {step + 1}: the loss is {float(loss.detach())}"
                )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            average.update_parameters(network)
        train_evaluations = evaluations / steps
        accuracy, _ = evaluate(averaged, data.validation, device)
        if accuracy >= max((before for _, before in history), default=0.0):
            best_weights = {key: tensor.to("cpu", copy=True) for key, tensor in averaged.state_dict().items()}
        history.append((time.perf_counter() - began, accuracy))
        console.print(f"epoch {epoch}: {train_evaluations:.1f} evaluations a batch; validation accuracy {100 * accuracy:.2f} %")
    averaged.load_state_dict(best_weights)
    test_accuracy, test_evaluations = evaluate(averaged, data.test, device)
    return TrainedNeuralODE(averaged, history, train_evaluations, test_accuracy, test_evaluations)


@torch.no_grad()
def evaluate(network: NeuralODE, part: Split, device: torch.device, *, batch_size: int = 500) -> tuple[float, float]:
    """Share that is right, and evaluations of the field, a mean over inputs; in evaluation mode, which the network is left in."""
    network.eval()
    right = evaluations = 0
    for inputs, labels in zip(torch.split(part.inputs, batch_size), torch.split(part.labels, batch_size), strict=True):
        network.field.evaluations = 0
        logits = network(inputs.to(device, torch.float32))
        right += int((logits.argmax(1).cpu() == labels).sum())
        evaluations += network.field.evaluations * len(labels)
    return right / len(part.labels), evaluations / len(part.labels)
