"""Profile of the scheduler: the share of CPU time in step, residual and solver, and in everything around them.

The scheduler runs as in ``benchmarks.engine``, saturated, in one process and on one thread. Every public method of the
backends, solvers and slot tables, and the functions of the mathematics, are timed exclusively: the time of a timed call within
another counts once. The target is at least 75 % inside step, residual and solver.

    python -m training import authors mnist_fpn.safetensors --family mnist
    python -m benchmarks.engine_profile model_store/authors_mnist/1 --data ylecun/mnist
"""

import functools
import gc
import inspect
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from app.engine.backends import Backend
from app.engine.scheduler import Scheduler
from app.engine.slots import SlotTable
from app.settings import BackendName, Precision
from benchmarks.engine import ComputeOptions, drive, make_scheduler, mixed_tolerances
from jfb.onnx.fused import FusedIteration
from jfb.solvers import Solver
from training.data import read
from training.recipe import DataRecipe

TARGET = 0.75
COMPILED = ("step", "solver.evaluate", "solver.propose", "residual", "fused iteration")
"""Step, residual and solver, whether one call computes them or several."""
MATHEMATICS = ("jfb.norms", "jfb.mixed_precision")
"""Modules of functions that the engine calls in addition to its own methods."""


class Stopwatch:
    """Exclusive CPU time and number of calls, by name, inside the scheduler."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inside: list[float] = []
        """For each call in progress, the seconds of the timed calls within it."""

    def reset(self) -> None:
        self.seconds.clear()
        self.calls.clear()

    def timed(self, name: str, function: Callable[..., Any], *, outermost: bool = False) -> Callable[..., Any]:
        """Return the function, timed inside other timed calls; an ``outermost`` function is always timed."""

        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            if not self._inside and not outermost:
                return function(*arguments, **named)
            self._inside.append(0.0)
            start = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                taken = time.process_time() - start
                self.seconds[name] += taken - self._inside.pop()
                self.calls[name] += 1
                if self._inside:
                    self._inside[-1] += taken

        return wrapper


def instrument(stopwatch: Stopwatch) -> None:
    """Time the methods and functions by introspection, so that new classes are covered too."""
    for base, prefix in ((Backend, ""), (Solver, "solver."), (SlotTable, "slots.")):
        for kind in (base, *_subclasses(base)):
            for name, method in list(vars(kind).items()):
                if inspect.isfunction(method) and not name.startswith("_"):
                    setattr(kind, name, stopwatch.timed(prefix + name, method))
    for module in [module for name, module in sys.modules.items() if name.startswith("app.engine")]:
        for name, function in list(vars(module).items()):
            if inspect.isfunction(function) and function.__module__ in MATHEMATICS:
                setattr(module, name, stopwatch.timed(name, function))
    FusedIteration.__call__ = stopwatch.timed("fused iteration", FusedIteration.__call__)  # type: ignore[method-assign]
    for name in ("submit", "tick"):
        setattr(Scheduler, name, stopwatch.timed(f"rest of {name}", getattr(Scheduler, name), outermost=True))


def _subclasses(base: type) -> list[type]:
    return [found for kind in base.__subclasses__() for found in (kind, *_subclasses(kind))]


def main(
    model: Annotated[Path, typer.Argument(help="A version's folder.")],
    data: Annotated[str, typer.Option(help="Source of images: a hub id, a folder, or sklearn/digits.")],
    split: str = "test",
    images: int = 1000,
    slots: int = 64,
    clients: int = 128,
    backend: BackendName = "auto",
    precision: Precision = "float32",
    solver: str | None = None,
) -> None:
    """Print each part's share of the CPU time, and its time per tick."""
    torch.set_num_threads(1)
    console = Console()
    inputs = read(DataRecipe(source=data), [split], console).splits[split].inputs[:images].float().numpy()
    stopwatch = Stopwatch()
    instrument(stopwatch)
    scheduler = make_scheduler(model, "iteration", slots, clients, ComputeOptions(backend, precision, solver))
    tolerances = mixed_tolerances(len(inputs))
    drive(scheduler, inputs[: 2 * slots], clients, tolerances)  # warm up
    gc.collect()
    gc.freeze()  # a collection of the libraries' objects would count for the part in which it happens
    stopwatch.reset()
    run = drive(scheduler, inputs, clients, tolerances)

    total, step = sum(stopwatch.seconds.values()), sum(stopwatch.seconds[name] for name in COMPILED if name in stopwatch.seconds)
    ticks = stopwatch.calls["rest of tick"]
    title = f"{len(inputs)} images, {slots} slots, {clients} clients, {ticks} ticks"
    table = Table("", "share", "µs per tick", "calls", title=title)
    for name, seconds in sorted(stopwatch.seconds.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds / total:.1%}", f"{1e6 * seconds / ticks:.1f}", str(stopwatch.calls[name]))
    console.print(table)
    evaluation = 1e6 * step / (run.evaluations * len(inputs))
    console.print(f"{run.requests_per_second:.1f} requests/s, {evaluation:.1f} µs of them per iteration of a row")
    console.print(f"inside step, residual and solver: {step / total:.1%}, target {TARGET:.0%}")


if __name__ == "__main__":
    typer.run(main)
