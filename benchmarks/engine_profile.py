"""Where the time of the engine's core goes: in the step, which is what clients wait for, and in everything around it.

The engine runs as in ``benchmarks.engine``, saturated, in one process and on one thread. Every public method of its backends,
solvers and slot tables, and of the mathematics, is timed where it is called, in CPU time; what a method calls of these in turn is
not counted twice. At least 70 % are aimed to be inside the step.

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
from benchmarks.engine import How, drive, scheduler_of
from jfb.solvers import Solver
from training.data import read
from training.recipe import DataRecipe

AIM = 0.7
STEP = ("step", "solver.evaluate")
"""What the aim is about: the map, whoever evaluates it."""
MATHEMATICS = ("jfb.norms", "jfb.mixed_precision")
"""Whose functions the engine calls beside those of its own classes."""


class Stopwatch:
    """Exclusive CPU time and calls by name, of what happens inside the engine."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inside: list[float] = []
        """Seconds of the calls within each call that is under way."""

    def reset(self) -> None:
        self.seconds.clear()
        self.calls.clear()

    def timed(self, name: str, function: Callable[..., Any], *, outermost: bool = False) -> Callable[..., Any]:
        """The function, timed if it is called by one that is; ``outermost`` ones are timed whoever calls."""

        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            if not self._inside and not outermost:
                return function(*arguments, **named)
            self._inside.append(0.0)
            began = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                taken = time.process_time() - began
                self.seconds[name] += taken - self._inside.pop()
                self.calls[name] += 1
                if self._inside:
                    self._inside[-1] += taken

        return wrapper


def watch(stopwatch: Stopwatch) -> None:
    """Time what there is, by the names that it has: classes that are written later are found as well."""
    for base, prefix in ((Backend, ""), (Solver, "solver."), (SlotTable, "slots.")):
        for kind in (base, *_subclasses(base)):
            for name, method in list(vars(kind).items()):
                if inspect.isfunction(method) and not name.startswith("_"):
                    setattr(kind, name, stopwatch.timed(prefix + name, method))
    for module in [module for name, module in sys.modules.items() if name.startswith("app.engine")]:
        for name, function in list(vars(module).items()):
            if inspect.isfunction(function) and function.__module__ in MATHEMATICS:
                setattr(module, name, stopwatch.timed(name, function))
    for name in ("submit", "tick"):
        setattr(Scheduler, name, stopwatch.timed(f"the rest of {name}", getattr(Scheduler, name), outermost=True))


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
    """Print each part's share, and what it takes a tick."""
    torch.set_num_threads(1)
    console = Console()
    inputs = read(DataRecipe(source=data), [split], console).splits[split].inputs[:images].float().numpy()
    stopwatch = Stopwatch()
    watch(stopwatch)
    scheduler = scheduler_of(model, "iteration", slots, clients, How(backend, precision, solver))
    drive(scheduler, inputs[: 2 * slots], clients)  # warm up
    gc.collect()
    gc.freeze()  # a collection of all that the libraries hold would be counted for whatever it happens in
    stopwatch.reset()
    run = drive(scheduler, inputs, clients)

    total, step = sum(stopwatch.seconds.values()), sum(stopwatch.seconds[name] for name in STEP)
    ticks = stopwatch.calls["the rest of tick"]
    title = f"{len(inputs)} images, {slots} slots, {clients} clients, {ticks} ticks"
    table = Table("", "share", "µs a tick", "calls", title=title)
    for name, seconds in sorted(stopwatch.seconds.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds / total:.1%}", f"{1e6 * seconds / ticks:.1f}", str(stopwatch.calls[name]))
    console.print(table)
    evaluation = 1e6 * step / (run.evaluations * len(inputs))
    console.print(f"{run.requests_per_second:.1f} requests/s, {evaluation:.1f} µs of the step an evaluation")
    console.print(f"inside the step: {step / total:.1%}, aimed at {AIM:.0%}")


if __name__ == "__main__":
    typer.run(main)
