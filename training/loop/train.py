"""The training loop."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from jfb import ImplicitNetwork, solve
from jfb.config import ArchitectureSpec
from jfb.contraction import local_contraction_factor
from training.data import Data, Split
from training.errors import RecipeError
from training.loop.compilation import compile_step, resolve_compilation
from training.loop.history import Epoch
from training.loop.network import Network, build_network, with_normalisation
from training.loop.objective import FixedPointObjective
from training.loop.precision import resolve_precision
from training.loop.processes import Processes
from training.loop.run import Run
from training.loop.run_folder import RunFolder
from training.loop.score import Score
from training.recipe import Recipe

BeforeStep = Callable[[Network, Tensor, Tensor], None]
"""Called before each step with the network, in training mode, and the batch of inputs and labels that it will learn from.
It must leave the network and torch's random state unchanged."""


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    recipe: Recipe
    architecture: ArchitectureSpec
    """With measured arguments."""
    network: ImplicitNetwork
    """In evaluation mode; the averaged weights at the end of the best epoch."""
    epoch: int
    """The best epoch: the one with the highest validation accuracy; of several, the last."""
    history: list[Epoch]
    validation: Score
    test: Score
    seconds: float
    """Spent training, without the time between an interruption and the resumption."""
    contraction_bound: float | None
    """Guaranteed upper bound on γ."""
    contraction_factor: float
    """Largest ``‖∂T/∂u‖₂`` measured at fixed points of validation inputs."""


def train(
    recipe: Recipe,
    data: Data,
    *,
    device: torch.device,
    console: Console,
    before_step: BeforeStep[ImplicitNetwork] | None = None,
    folder: RunFolder | None = None,
    processes: Processes | None = None,
) -> Trained:
    """Train the recipe's network on the training part, select the best epoch on the validation part, report on the test part.

    The same recipe and data give the same weights, bit for bit, on the same machine with the same number of threads, no matter
    how often the run was interrupted and resumed. On several processes they agree to rounding, except for dropout, which each
    process draws for its own rows.

    Args:
        folder: where the run saves snapshots and history; a run that has a snapshot there is resumed from it.
        processes: default: this one alone.

    Raises:
        RecipeError: for arguments that the architecture refuses, batches with fewer inputs than processes, or a curriculum whose
            inputs have a shape that the network does not take.
        NonFiniteLossError: for a loss that is NaN or infinite.
        TrainingError: for a snapshot of another recipe or of other data.
    """
    processes = processes or Processes()
    snapshot = folder.read_snapshot() if folder else None

    measured = with_normalisation(recipe, data.train)
    recipe = resolve_precision(recipe, measured, data, device, processes, snapshot)
    recipe = resolve_compilation(recipe, measured, data, device, processes, snapshot, console)
    network = build_network(measured, data.input, len(data.classes), device)
    _check_shapes(network, recipe, data, device)
    run = Run(recipe, measured, FixedPointObjective(network, recipe), data, device, processes)
    if recipe.search.compile:  # the averaged network, which is scored and published, is not compiled
        compile_step(network)
    if folder and snapshot:
        run.restore(snapshot, folder)
        console.print(f"resuming {folder.path} at epoch {run.epoch}, after step {run.step}", soft_wrap=True)

    fit(run, console=console, before_step=before_step, folder=folder)

    network = run.best_network()
    return Trained(
        recipe=run.recipe,
        architecture=run.architecture,
        network=network,
        epoch=run.best_epoch,
        history=run.history,
        validation=run.objective.score(network, data.validation, device),
        test=run.objective.score(network, data.test, device),
        seconds=run.seconds,
        contraction_bound=network.contraction_bound(),
        contraction_factor=measure_contraction(network, data.validation, recipe, device),
    )


def fit(
    run: Run[Network],
    *,
    console: Console,
    before_step: BeforeStep[Network] | None = None,
    folder: RunFolder | None = None,
) -> None:
    """Run the epochs that remain: the one loop that every network is trained by."""
    started = time.perf_counter() - run.seconds
    saved = time.perf_counter()
    epochs = len(run.parts)
    if not run.processes.first:
        folder = None  # the first process writes for all
    with _progress_bar(console) as bar, folder.record(run.history) if folder else nullcontext() as record:
        task = bar.add_task("", total=sum(run.steps), progress="")
        while run.epoch <= epochs:
            run.network.train()
            for inputs, labels in run.load_batches(run.remaining_batches()):
                if before_step:
                    before_step(run.network, inputs, labels)
                run.learn(inputs, labels)
                description = f"epoch {run.epoch}/{epochs}"
                bar.update(task, completed=run.completed, description=description, progress=run.progress())
                if folder and time.perf_counter() - saved >= folder.snapshot_seconds:
                    run.seconds = time.perf_counter() - started
                    folder.write_snapshot(run.snapshot())
                    saved = time.perf_counter()
            training = run.progress()
            validation = run.objective.score(run.averaged, run.data.validation, run.device)
            run.seconds = time.perf_counter() - started
            run.end_epoch(validation)
            if folder and record:
                record.add(run.history)
                folder.write_snapshot(run.snapshot())
                saved = time.perf_counter()
            bar.console.print(
                f"epoch {run.history[-1].epoch}: {training}; validation {validation.loss:.3f}, "
                f"{100 * validation.accuracy:.2f} %, {validation.iterations:.1f}",
                soft_wrap=True,
            )


def measure_contraction(network: ImplicitNetwork, part: Split, recipe: Recipe, device: torch.device, *, rows: int = 256) -> float:
    """Return the largest ``‖∂T/∂u‖₂`` at the fixed points of a part's first inputs."""
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


@torch.no_grad()
def _check_shapes(network: ImplicitNetwork, recipe: Recipe, data: Data, device: torch.device) -> None:
    """Refuse inputs of a shape that the network does not take, before a run has trained for a while."""
    network.eval()
    parts = [(f"curriculum.{number}", part) for number, part in enumerate(data.curriculum)]
    parts += [(f"generalisation.{number}", part) for number, part in enumerate(data.generalisation)]
    for key, part in parts:
        try:
            network.readout(network.initial_state(network.inject(part.inputs[:1].to(device, torch.float32))))
        except RuntimeError as error:
            shape = list(part.inputs.shape[1:])
            raise RecipeError(
                f"{recipe.name}: {key}: inputs must have the shape {list(data.input.shape)}, because "
                f"{recipe.network.name} does not take other ones (got {shape})"
            ) from error


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[progress]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # it would write empty lines
    )
