"""Every solver of a model on the same inputs, from its learned start and without: iterations, processor time and labels.

Inputs are solved in batches of 64 by a folded copy of the network, as in the server. The solvers alternate. Times are medians
over the rounds, of processor time, inject and readout included. A label differs if it is not that of a fixed point at 1e-6.

    python -m training accelerate authors_mnist --start --recipe mnist --data DIR
    OMP_NUM_THREADS=1 python -m benchmarks.solvers model_store/authors_mnist/2 --data DIR
    OMP_NUM_THREADS=1 python -m benchmarks.solvers model_store/digits/2 --data sklearn/digits --split train
"""

import math
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

import jfb
from jfb import Checkpoint, ImplicitNetwork
from jfb.solvers import Picard, Solver
from training.data import read
from training.recipe import DataRecipe

TOLERANCES = (0.1, 0.01, 0.001, 0.0001)
BATCH_SIZE = 64
CAP = 500


def solve_all(
    network: ImplicitNetwork, checkpoint: Checkpoint, inputs: Tensor, solver: Solver, tolerance: float, *, started: bool = False
) -> tuple[float, Tensor, Tensor]:
    """Milliseconds of processor time per input, iterations ``[n]`` and labels ``[n]``."""
    norm = checkpoint.config.serving.residual_norm
    learned, network.learned_start = network.learned_start, network.learned_start if started else None
    begin = time.process_time()
    found = [
        jfb.predict(network, batch, tolerance=tolerance, max_iterations=CAP, residual_norm=norm, solver=solver)
        for batch in torch.split(inputs, BATCH_SIZE)
    ]
    milliseconds = 1000 * (time.process_time() - begin) / len(inputs)
    network.learned_start = learned
    iterations = torch.cat([prediction.solution.iterations for prediction in found])
    return milliseconds, iterations, torch.cat([prediction.logits.argmax(1) for prediction in found])


def unusual_inputs(inputs: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """Return inputs unlike any in training."""
    noise = low + (high - low) * torch.rand(inputs[:200].shape, generator=torch.Generator().manual_seed(0))
    return {
        "blank": torch.full_like(inputs[:1], low),
        "full": torch.full_like(inputs[:1], high),
        "noise": noise,
        "inverted": low + high - inputs[:200],
    }


def rows_of(
    network: ImplicitNetwork, checkpoint: Checkpoint, inputs: Tensor, tolerances: Iterable[float], rounds: int
) -> Iterable[tuple[str, ...]]:
    """Yield one row of the table per tolerance and solver, and those with a learned start if there is one."""
    plain = {name: (solver, False) for name, solver in checkpoint.solvers.items()}
    learned = {f"start, {name}": (solver, True) for name, solver in checkpoint.solvers.items() if network.learned_start}
    solvers = plain | learned
    reference = solve_all(network, checkpoint, inputs, Picard(), 1e-6)[2]
    for tolerance in tolerances:
        runs = {
            name: solve_all(network, checkpoint, inputs, solver, tolerance, started=started)
            for name, (solver, started) in solvers.items()
        }
        times: dict[str, list[float]] = {name: [] for name in solvers}
        for _ in range(rounds):
            for name, (solver, started) in solvers.items():
                times[name].append(solve_all(network, checkpoint, inputs, solver, tolerance, started=started)[0])
        for name, (_, iterations, labels) in runs.items():
            ordered = iterations.sort().values
            yield (
                f"{tolerance:g}",
                name,
                f"{float(iterations.double().mean()):.2f}",
                str(int(ordered[math.ceil(0.95 * len(ordered)) - 1])),
                str(int(ordered[-1])),
                f"{int((iterations - runs['picard'][1]).max()):+d}",
                f"{statistics.median(times[name]):.3f}",
                str(int((labels != reference).sum())),
            )


def main(
    model: Annotated[Path, typer.Argument(help="The folder of a version.")],
    data: Annotated[str, typer.Option(help="Source of the inputs: a hub id, a folder, or sklearn/digits.")],
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "test",
    images: Annotated[int, typer.Option(help="Number of inputs.")] = 2000,
    rounds: Annotated[int, typer.Option(help="How often each solver is timed.")] = 5,
) -> None:
    """Print a Markdown table for the inputs, and one for each kind of unusual input."""
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    checkpoint = jfb.load(model)
    network: ImplicitNetwork = checkpoint.network.folded().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = read(DataRecipe(source=data), [split], Console(stderr=True)).splits[split].inputs[:images].float()
    head = (
        "tolerance",
        "solver",
        "mean iterations",
        "95th percentile",
        "worst",
        "worst against Picard",
        "CPU ms per input",
        "differing",
    )
    console.print(f"{model.resolve().parent.name}: {len(inputs)} inputs, {checkpoint.config.serving.residual_norm}\n")
    console.print(markdown(head, rows_of(network, checkpoint, inputs, TOLERANCES, rounds)))
    spec = checkpoint.config.input
    if spec.low is None or spec.high is None:
        return
    for name, unusual in unusual_inputs(inputs, spec.low, spec.high).items():
        console.print(f"\n{name}: {len(unusual)} inputs\n")
        console.print(markdown(head, rows_of(network, checkpoint, unusual, (TOLERANCES[0], TOLERANCES[-1]), 1)))


def markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    typer.run(main)
