"""Gradients: train one network, with the same seeds and data, under several gradients, each in a process of its own."""

import math
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Console
from torch import Tensor

from jfb import ImplicitNetwork
from jfb.config import InputSpec
from training.comparison.alignment import Alignment, AlignmentRecorder
from training.comparison.fresh_process import in_fresh_process
from training.comparison.memory import MemoryPoint, memory_by_iterations, peak_memory
from training.data import load_data
from training.loop.history import Epoch
from training.loop.score import Score
from training.loop.train import train
from training.recipe import Recipe

MEASUREMENTS = 40
"""Number of alignments measured during a run."""


@dataclass(frozen=True)
class GradientRun:
    """Measurements of a training run under one gradient."""

    gradient: str
    history: list[Epoch]
    validation: Score
    test: Score
    seconds: float
    step_seconds: float
    """Wall time per step, median over the run."""
    step_cpu_seconds: float
    """CPU time per step on all threads, median over the run; independent of other load on the machine."""
    memory_before: int
    """Peak in bytes after loading the data, before training."""
    memory: int
    """Peak in bytes of the whole run."""
    input: InputSpec
    classes: int


@dataclass(frozen=True)
class GradientComparison:
    """Measurements of all runs."""

    recipe: Recipe
    device: str
    threads: int
    runs: list[GradientRun]
    alignments: list[Alignment]
    """From one more run under JFB, so that measuring them does not affect the timed runs."""
    memory: list[MemoryPoint]


def compare_gradients(recipe: Recipe, gradients: list[str], *, device: torch.device, console: Console) -> GradientComparison:
    """Train under each gradient in turn, each in a fresh process; then measure alignment and memory.

    Raises:
        TrainingError: from ``load_data`` and ``train``.
    """
    quiet = console.quiet
    recipes = [with_gradient(recipe, gradient) for gradient in gradients]
    runs = []
    for chosen in recipes:
        console.print(f"[bold]{chosen.name}[/bold] with gradient [bold]{chosen.gradient.name}[/bold]")
        runs.append(in_fresh_process(measure_run, chosen, device, quiet))
    console.print("alignment of the JFB direction with the exact gradient")
    alignments = in_fresh_process(measure_alignments, with_gradient(recipe, "jfb"), device, quiet)
    console.print("memory by number of iterations")
    memory = [
        point
        for chosen in recipes
        for point in in_fresh_process(memory_by_iterations, chosen, runs[0].input, runs[0].classes, device)
    ]
    return GradientComparison(recipe, str(device), torch.get_num_threads(), runs, alignments, memory)


def with_gradient(recipe: Recipe, gradient: str) -> Recipe:
    """Return the recipe with another gradient. An explicit network is also evaluated as one: with a single iteration."""
    if recipe.gradient.name != gradient:
        recipe = recipe.changed({"gradient": {"name": gradient}})
    return recipe.changed({"serving.max_iterations": 1}) if gradient == "explicit" else recipe


def measure_run(recipe: Recipe, device: torch.device, quiet: bool) -> GradientRun:
    """Train as ``python -m training train`` does, and measure time and memory."""
    console = Console(quiet=quiet)
    data = load_data(recipe, console)
    before = peak_memory(device)
    clock = StepClock()
    recipe = recipe.changed({"search.compile": False})  # which not every gradient could do
    trained = train(recipe, data, device=device, console=console, before_step=clock)
    return GradientRun(
        gradient=recipe.gradient.name,
        history=trained.history,
        validation=trained.validation,
        test=trained.test,
        seconds=trained.seconds,
        step_seconds=clock.step_seconds(),
        step_cpu_seconds=clock.step_cpu_seconds(),
        memory_before=before,
        memory=peak_memory(device),
        input=data.input,
        classes=len(data.classes),
    )


def measure_alignments(recipe: Recipe, device: torch.device, quiet: bool) -> list[Alignment]:
    """Train once more, and measure alignments during the run."""
    console = Console(quiet=quiet)
    data = load_data(recipe, console)
    steps = recipe.optimisation.epochs * max(len(data.train.labels) // recipe.optimisation.batch_size, 1)
    recipe = recipe.changed({"search.compile": False})  # the exact gradient differentiates the map more than once
    recorder = AlignmentRecorder(recipe.search.build(), every=max(steps // MEASUREMENTS, 1))
    train(recipe, data, device=device, console=console, before_step=recorder)
    return recorder.alignments


class StepClock:
    """A ``BeforeStep`` that records the time at which each step starts."""

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._cpu_starts: list[float] = []

    def __call__(self, network: ImplicitNetwork, inputs: Tensor, labels: Tensor) -> None:
        self._starts.append(time.perf_counter())
        self._cpu_starts.append(time.process_time())

    def step_seconds(self) -> float:
        """Return the median wall time per step (pauses between epochs hardly affect it); NaN for a single step."""
        return _median_gap(self._starts)

    def step_cpu_seconds(self) -> float:
        """Return the median CPU time per step; NaN for a single step."""
        return _median_gap(self._cpu_starts)


def _median_gap(starts: list[float]) -> float:
    return statistics.median([following - start for start, following in pairwise(starts)] or [math.nan])
