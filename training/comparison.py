"""Comparison: the same network, seeds and data under several gradients, a process each."""

import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Thread
from typing import ParamSpec, TypeVar

import torch
from rich.console import Console
from torch import Tensor

from jfb import ImplicitNetwork
from jfb.config import InputSpec
from training.alignment import Alignment, AlignmentWatch
from training.data import load_data
from training.history import Epoch
from training.memory import MemoryPoint, memory_by_iterations, peak_memory
from training.recipe import Recipe
from training.score import Score
from training.train import train

MEASUREMENTS = 40
"""How often a run is stopped to compare directions."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """One training run under one gradient."""

    gradient: str
    history: list[Epoch]
    validation: Score
    test: Score
    seconds: float
    step_seconds: float
    """Median over the run, from one step's beginning to the next one's."""
    step_cpu_seconds: float
    """The same, of the processor time that the process had, on all its threads: what a busy machine does not lengthen."""
    memory_before: int
    """Bytes: the peak when the data was in memory and nothing had been trained."""
    memory: int
    """Bytes: the peak of the whole run."""
    input: InputSpec
    classes: int


@dataclass(frozen=True)
class Comparison:
    """All that was measured."""

    recipe: Recipe
    device: str
    threads: int
    runs: list[Run]
    alignments: list[Alignment]
    """During one more run under JFB, so that no run that is timed is looked at."""
    memory: list[MemoryPoint]


def compare(recipe: Recipe, gradients: list[str], *, device: torch.device, console: Console) -> Comparison:
    """Train under each gradient, one after the other, each in a fresh process; then measure alignment and memory.

    Raises:
        TrainingError: what ``load_data`` and ``train`` raise.
    """
    quiet = console.quiet
    recipes = [under(recipe, gradient) for gradient in gradients]
    runs = []
    for chosen in recipes:
        console.print(f"[bold]{chosen.name}[/bold] under [bold]{chosen.gradient.name}[/bold]")
        runs.append(in_fresh_process(run, chosen, device, quiet))
    console.print("JFB direction and exact gradient")
    alignments = in_fresh_process(run_watched, under(recipe, "jfb"), device, quiet)
    console.print("memory by iterations")
    memory = [
        point
        for chosen in recipes
        for point in in_fresh_process(memory_by_iterations, chosen, runs[0].input, runs[0].classes, device)
    ]
    return Comparison(recipe, str(device), torch.get_num_threads(), runs, alignments, memory)


def under(recipe: Recipe, gradient: str) -> Recipe:
    """The recipe with another gradient. The explicit network is evaluated as one, too: with a single application."""
    if recipe.gradient.name != gradient:
        recipe = recipe.changed({"gradient": {"name": gradient}})
    return recipe.changed({"serving.max_iterations": 1}) if gradient == "explicit" else recipe


def run(recipe: Recipe, device: torch.device, quiet: bool) -> Run:
    """Train as ``python -m training train`` does, and measure time and memory."""
    console = Console(quiet=quiet)
    data = load_data(recipe.data, console)
    before = peak_memory(device)
    clock = StepClock()
    trained = train(recipe, data, device=device, console=console, watch=clock)
    return Run(
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


def run_watched(recipe: Recipe, device: torch.device, quiet: bool) -> list[Alignment]:
    """Train once more, and compare directions on the way."""
    console = Console(quiet=quiet)
    data = load_data(recipe.data, console)
    steps = recipe.optimisation.epochs * max(len(data.train.labels) // recipe.optimisation.batch_size, 1)
    watch = AlignmentWatch(recipe.search.build(), every=max(steps // MEASUREMENTS, 1))
    train(recipe, data, device=device, console=console, watch=watch)
    return watch.found


class StepClock:
    """A ``training.train.Watch`` that notes when each step begins."""

    def __init__(self) -> None:
        self._beginnings: list[float] = []
        self._cpu_beginnings: list[float] = []

    def __call__(self, network: ImplicitNetwork, inputs: Tensor, labels: Tensor) -> None:
        self._beginnings.append(time.perf_counter())
        self._cpu_beginnings.append(time.process_time())

    def step_seconds(self) -> float:
        """Median from beginning to beginning; a pause between epochs is one number in many. NaN for a single step."""
        return _median_gap(self._beginnings)

    def step_cpu_seconds(self) -> float:
        """The same of processor time."""
        return _median_gap(self._cpu_beginnings)


def _median_gap(beginnings: list[float]) -> float:
    return statistics.median([end - begin for begin, end in pairwise(beginnings)] or [math.nan])


def in_fresh_process(function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
    """Call a function where nothing else has used memory yet; if this process is killed, that one ends."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent) as pool:
        return pool.submit(function, *arguments, **named).result()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # an epoch may take half an hour, and nobody waits for it any more

    Thread(target=watch, daemon=True).start()
