"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jfb import ImplicitNetwork, solve
from jfb.architectures import build
from jfb.contraction import local_contraction_factor
from jfb.model_config import ArchitectureSpec
from training.augment import build_augmentation
from training.data import Data, measure_normalisation
from training.errors import NonFiniteLossError, RecipeError
from training.history import Epoch
from training.recipe import OptimisationRecipe, Recipe
from training.score import Score, score
from training.sources import Split

Watch = Callable[[ImplicitNetwork, Tensor, Tensor], None]
"""Looks on: called before each step with the network in training mode and the batch of inputs and labels that it will learn
from. It must leave the network and torch's random state as they are."""


@dataclass(frozen=True)
class Trained:
    """What a run leaves: the network, and what is known about it."""

    recipe: Recipe
    architecture: ArchitectureSpec
    """With the arguments that were measured."""
    network: ImplicitNetwork
    """In evaluation mode; the averaged weights."""
    history: list[Epoch]
    validation: Score
    test: Score
    seconds: float
    contraction_bound: float | None
    """Guaranteed upper bound on γ."""
    contraction_factor: float
    """Largest ``‖∂T/∂u‖₂`` measured at fixed points of validation inputs."""


def train(recipe: Recipe, data: Data, *, device: torch.device, console: Console, watch: Watch | None = None) -> Trained:
    """Train the recipe's network on the training part, watch it on the validation part, report on the test part.

    The same recipe and data give the same weights, bit for bit, on the same machine with the same number of threads.

    Raises:
        RecipeError: for arguments that the architecture refuses.
        NonFiniteLossError: as soon as the loss is NaN or infinite.
    """
    began = time.perf_counter()
    settings = recipe.optimisation
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.deterministic = True

    architecture = with_normalisation(recipe.network, data.train)
    try:
        network = build(architecture.name, data.input.shape, len(data.classes), architecture.arguments).to(device)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{recipe.name}: network: {error}") from error
    if len(data.input.shape) == 3:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster so
    # Operator norms are convex, so an average of weights that keep a bound keeps it, too.
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging), use_buffers=True)  # type: ignore[no-untyped-call]
    averaged = cast(ImplicitNetwork, average.module)

    steps_per_epoch = max(len(data.train.labels) // settings.batch_size, 1)
    optimiser = torch.optim.AdamW(decayed(network, settings.weight_decay), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step / (settings.epochs * steps_per_epoch), settings.warm_up)
    )
    gradient, search, augment = recipe.gradient.build(), recipe.search.build(), build_augmentation(recipe.augment)

    history: list[Epoch] = []
    with _progress(console) as progress:
        bar = progress.add_task("", total=settings.epochs * steps_per_epoch, news="")
        for epoch in range(1, settings.epochs + 1):
            # Seeded anew, so that an epoch's randomness does not hang on how many numbers those before it drew.
            torch.manual_seed(epoch_seed(settings, epoch))
            network.train()
            loss_sum = right = iterations = seen = 0.0
            for step, rows in enumerate(batches(len(data.train.labels), settings.batch_size, steps_per_epoch), 1):
                inputs = augment(data.train.inputs[rows].to(device, torch.float32))
                labels = data.train.labels[rows].to(device)
                if watch:
                    watch(network, inputs, labels)

                injection = network.inject(inputs)
                state, solution = gradient(network, injection, search)
                logits = network.readout(state)
                loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
                if not math.isfinite(loss.item()):
                    raise NonFiniteLossError(_non_finite(recipe, epoch, step, loss.item(), inputs))

                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                network.constrain()
                average.update_parameters(network)

                seen += len(labels)
                loss_sum += loss.item() * len(labels)
                right += int((logits.argmax(1) == labels).sum())
                iterations += int(solution.iterations.sum())
                news = f"loss {loss_sum / seen:.4f}  accuracy {100 * right / seen:.2f} %  iterations {iterations / seen:.1f}"
                progress.update(bar, advance=1, description=f"epoch {epoch}/{settings.epochs}", news=news)

            validation = score(averaged, data.validation, recipe.serving, device)
            history.append(
                Epoch(
                    epoch=epoch,
                    seconds=time.perf_counter() - began,
                    learning_rate=float(schedule.get_last_lr()[0]),
                    train_loss=loss_sum / seen,
                    train_accuracy=right / seen,
                    train_iterations=iterations / seen,
                    validation_loss=validation.loss,
                    validation_accuracy=validation.accuracy,
                    validation_iterations=validation.iterations,
                    contraction_bound=averaged.contraction_bound(),
                )
            )
            progress.console.print(
                f"epoch {epoch}: {news}; validation loss {validation.loss:.4f}, accuracy {100 * validation.accuracy:.2f} %, "
                f"iterations {validation.iterations:.1f}",
                soft_wrap=True,
            )

    seconds = time.perf_counter() - began
    return Trained(
        recipe=recipe,
        architecture=architecture,
        network=averaged,
        history=history,
        validation=validation,
        test=score(averaged, data.test, recipe.serving, device),
        seconds=seconds,
        contraction_bound=averaged.contraction_bound(),
        contraction_factor=measured_contraction(averaged, data.validation, recipe, device),
    )


def with_normalisation(network: ArchitectureSpec, part: Split) -> ArchitectureSpec:
    """Add the mean and standard deviation of a part's inputs to an architecture's arguments, where they are left out."""
    mean, std = measure_normalisation(part.inputs)
    return ArchitectureSpec(name=network.name, arguments={"mean": [*mean], "std": [*std], **network.arguments})


def decayed(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters in two groups for the optimiser: weight decay is for matrices and kernels alone."""
    kernels = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate_factor(progress: float, warm_up: float) -> float:
    """Factor on the learning rate at a share of the run, both in [0, 1]: a line up, then a cosine down to zero."""
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up  # a rate of zero would waste the first step
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warm_up) / (1 - warm_up))


def epoch_seed(settings: OptimisationRecipe, epoch: int) -> int:
    """The seed of everything random in an epoch: order, augmentation, dropout."""
    return settings.seed * 1_000_003 + epoch


def batches(rows: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Rows of each step of an epoch, in random order; what does not fill a batch waits for another epoch's order."""
    order = torch.randperm(rows)
    for step in range(steps):
        yield order[step * batch_size : (step + 1) * batch_size]


def measured_contraction(
    network: ImplicitNetwork, part: Split, recipe: Recipe, device: torch.device, *, rows: int = 256
) -> float:
    """The largest ``‖∂T/∂u‖₂`` at the fixed points of a part's first inputs."""
    with torch.no_grad():
        injection = network.inject(part.inputs[:rows].to(device, torch.float32))
    serving = recipe.serving
    solution = solve(
        network,
        injection,
        tolerance=serving.tolerance,
        max_iterations=serving.max_iterations,
        residual_norm=serving.residual_norm,
    )
    return float(local_contraction_factor(network, solution.fixed_point, injection).amax())


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
        console=console,
        transient=True,
    )


def _non_finite(recipe: Recipe, epoch: int, step: int, loss: float, inputs: Tensor) -> str:
    where = f"epoch {epoch}, step {step}: the loss is {loss}"
    if not bool(inputs.isfinite().all()):
        return f"{where}, because inputs of this batch are not finite: mend the data"
    return (
        f"{where}: lower optimisation.learning_rate (now {recipe.optimisation.learning_rate:g}), or lengthen "
        f"optimisation.warm_up (now {recipe.optimisation.warm_up:g})"
    )
