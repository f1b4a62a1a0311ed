"""Compare: train each rival, with the data and schedule of one recipe, in a process of its own."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from jfb.config import ArchitectureSpec, InputSpec
from training.comparison.fresh_process import in_fresh_process
from training.comparison.gradients import measure_run
from training.comparison.memory import peak_memory
from training.data import load_data
from training.errors import RecipeError
from training.loop.history import Epoch
from training.loop.network import count_parameters, initialise, with_normalisation
from training.loop.processes import Processes
from training.loop.run import Run
from training.loop.score import Score
from training.loop.train import fit
from training.recipe import Recipe
from training.rivals.neural_ode import NeuralODE, NeuralODEObjective, integrator
from training.rivals.table import CPU, MONOTONE, RIVALS, fit_width, network_size, rival_recipe


@dataclass(frozen=True)
class RivalRun:
    """Measurements of the training of one rival."""

    name: str
    parameters: int
    history: list[Epoch]
    test: Score
    """Its iterations, and those of ``history``, are evaluations of the field for a neural ODE."""
    seconds: float
    """Spent training."""
    cpu_seconds: float
    """Of the whole process on all threads, with loading and testing; hardly affected by other load on the machine."""
    memory_before: int
    """Peak in bytes after loading the data, before training."""
    memory: int
    """Peak in bytes of the whole run."""


@dataclass(frozen=True)
class RivalsComparison:
    """Measurements of all rivals."""

    recipe: Recipe
    device: str
    threads: int
    runs: list[RivalRun]


def compare_rivals(recipe: Recipe, names: list[str], *, device: torch.device, console: Console) -> Iterator[RivalsComparison]:
    """Train each rival in turn, each in a fresh process.

    Args:
        names: keys of ``RIVALS``.

    Yields:
        All measurements so far, after each rival.

    Raises:
        RecipeError: for a recipe whose network is not a key of ``MONOTONE``.
        TrainingError: from loading and training, and for a neural ODE without torchdiffeq.
    """
    if recipe.network.name not in MONOTONE:
        raise RecipeError(
            f"{recipe.name}: network.name: must be {' or '.join(MONOTONE)} to compare rivals (got {recipe.network.name!r})"
        )
    if any(RIVALS[name].augmentation is not None for name in names):
        integrator()  # fail before the other rivals are trained
    data = load_data(recipe, console)
    runs = []
    for name in names:
        console.print(f"[bold]{recipe.name}[/bold]: [bold]{RIVALS[name].title}[/bold]")
        run = run_iterating if RIVALS[name].augmentation is None else run_neural_ode
        runs.append(in_fresh_process(run, recipe, name, data.input, len(data.classes), device, console.quiet))
        yield RivalsComparison(recipe, str(device), torch.get_num_threads(), [*runs])


def run_iterating(recipe: Recipe, name: str, spec: InputSpec, classes: int, device: torch.device, quiet: bool) -> RivalRun:
    """Train and measure a rival that iterates to a fixed point; call it in a fresh process."""
    chosen = rival_recipe(recipe, name, spec, classes)
    run = measure_run(chosen, device, quiet)
    return RivalRun(
        name=name,
        parameters=network_size(chosen, spec, classes),
        history=run.history,
        test=run.test,
        seconds=run.seconds,
        cpu_seconds=time.process_time(),
        memory_before=run.memory_before,
        memory=run.memory,
    )


def run_neural_ode(recipe: Recipe, name: str, spec: InputSpec, classes: int, device: torch.device, quiet: bool) -> RivalRun:
    """Train and measure a neural ODE; call it in a fresh process."""
    console = Console(quiet=quiet)
    data = load_data(recipe, console)
    rival = neural_ode_recipe(recipe, name, spec, classes)
    before = peak_memory(device)

    measured = with_normalisation(rival, data.train)
    network = build_neural_ode(measured, spec, classes, device)
    run = Run(rival, measured, NeuralODEObjective(network, rival), data, device, Processes())
    fit(run, console=console)
    return RivalRun(
        name=name,
        parameters=count_parameters(network),
        history=run.history,
        test=run.objective.score(run.best_network(), data.test, device),
        seconds=run.seconds,
        cpu_seconds=time.process_time(),
        memory_before=before,
        memory=peak_memory(device),
    )


def neural_ode_recipe(recipe: Recipe, name: str, spec: InputSpec, classes: int) -> Recipe:
    """Return the recipe of a neural ODE with the stem and the number of parameters of the given recipe's network."""
    arguments = {key: value for key, value in recipe.network.arguments.items() if key != "contraction"}
    arguments["augmentation"] = RIVALS[name].augmentation

    def with_arguments(arguments: dict[str, Any]) -> Recipe:
        return recipe.model_copy(update={"network": ArchitectureSpec(name=name, arguments=arguments)})

    def make(arguments: dict[str, Any]) -> NeuralODE:
        return build_neural_ode(with_arguments(arguments), spec, classes, CPU)

    return with_arguments(fit_width(arguments, network_size(recipe, spec, classes), make))


def build_neural_ode(recipe: Recipe, spec: InputSpec, classes: int, device: torch.device) -> NeuralODE:
    """Build the neural ODE of a recipe from ``neural_ode_recipe``, with random weights."""
    options: dict[str, Any] = recipe.network.arguments
    return initialise(lambda: NeuralODE(spec.shape, classes, **options), recipe, spec, device)
