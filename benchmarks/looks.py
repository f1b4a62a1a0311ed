"""Would looking at the rows less often pay? The engine saturated, with a look after every one, two or three iterations.

Where rows end in nearly every iteration, a look that comes later finds more rows: injections and readouts are larger, and fewer
rows move. But what has ended iterates in vain until then. Time is processor time, in one process and one thread, interleaved.

    python -m training import authors mnist_fpn.safetensors --family mnist
    OMP_NUM_THREADS=1 python -m benchmarks.looks model_store/authors_mnist/1 --data ylecun/mnist
"""

import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from app.engine.isolation import Fail
from app.engine.lane import Lane
from benchmarks.engine import ComputeOptions, drive, make_scheduler, mixed_tolerances
from training.data import read
from training.recipe import DataRecipe

LOOK_AFTER = (1, 2, 3)


class Patience:
    """Takes the place of ``Lane.advance``: always that many iterations, except at a cap; counts what is iterated in vain."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self.in_vain = 0

    def advance(self, lane: Lane, fail: Fail, *, once: bool = False) -> tuple[int, int]:
        table = lane.table
        table.close_gaps()
        ended = np.zeros(table.active, np.bool_)
        most = min(self.iterations, int((table.max_iterations - table.iterations).min()))
        for _ in range(most):
            self.in_vain += int(np.count_nonzero(ended))
            lane._iterate(1, False, fail)
            ended |= lane.wait_for_residual() <= table.tolerance
        lane._settle(most)
        return table.active, most


def main(
    model: Annotated[Path, typer.Argument(help="Version folder.")],
    data: Annotated[str, typer.Option(help="As in a recipe.")] = "ylecun/mnist",
    images: int = 1500,
    slots: int = 64,
    clients: int = 64,
    rounds: int = 3,
) -> None:
    """Print requests per second of processor time, and the share of iterations in vain, as medians over the rounds."""
    torch.set_num_threads(1)
    console = Console()
    inputs = read(DataRecipe(source=data), ["test"], console).splits["test"].inputs[:images].float().numpy()
    tolerances = mixed_tolerances(len(inputs))
    scheduler = make_scheduler(model, "iteration", slots, clients, ComputeOptions())
    drive(scheduler, inputs[:200], clients, tolerances)
    found: dict[int, list[tuple[float, float, float]]] = {one: [] for one in LOOK_AFTER}
    own = Lane.advance
    for number in range(rounds):
        for iterations in LOOK_AFTER[:: -1 if number % 2 else 1]:
            patience = Patience(iterations)
            Lane.advance = lambda lane, fail, *, once=False, now=patience: now.advance(lane, fail, once=once)  # type: ignore[method-assign]
            before = scheduler.step_evaluations
            run = drive(scheduler, inputs, clients, tolerances, clock=time.process_time)
            evaluations = scheduler.step_evaluations - before
            found[iterations].append((run.requests_per_second, evaluations / len(inputs), patience.in_vain / evaluations))
    Lane.advance = own  # type: ignore[method-assign]
    table = Table("look after", "requests/s", "against every iteration", "iterations a request", "in vain")
    for iterations, runs in found.items():
        speed, evaluations, in_vain = (statistics.median(values) for values in zip(*runs, strict=True))
        ratio = statistics.median(one[0] / each[0] for one, each in zip(runs, found[1], strict=True))
        table.add_row(str(iterations), f"{speed:.0f}", f"{ratio:.2f}", f"{evaluations:.2f}", f"{100 * in_vain:.1f} %")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
