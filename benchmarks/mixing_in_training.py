"""What learned mixing would save in a training step: the time of a step, and of its search with Picard's solver and with mixing.

The network is trained with Picard for some steps, then mixing is fitted to it in 50 steps, and both solvers search the same
batches. The fit is timed by itself: it has to be repeated as the weights change. Times are of processor time, the least of five
rounds.

    OMP_NUM_THREADS=1 python -m benchmarks.mixing_in_training digits --steps 250
    OMP_NUM_THREADS=1 python -m benchmarks.mixing_in_training mnist --data DIR --steps 100 --inputs 10000
"""

import time
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

import jfb
from jfb.solvers import Picard, Solver
from training.acceleration import fit
from training.data import load_parts
from training.loop.network import build_network, with_normalisation
from training.loop.objective import FixedPointObjective
from training.loop.processes import Processes
from training.loop.run import Run
from training.recipe import load_recipe

CPU = torch.device("cpu")
BATCHES = 20
ROUNDS = 5


def main(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe.")],
    data: Annotated[str | None, typer.Option(help="Source of the data instead of the recipe's.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps before the measurement.")] = 250,
    inputs: Annotated[int | None, typer.Option(help="Training inputs, instead of all.")] = None,
) -> None:
    """Print milliseconds and iterations."""
    chosen = load_recipe(recipe).changed({} if data is None else {"data.source": data})
    console = Console(stderr=True)
    parts = load_parts(chosen.data, console)
    parts = replace(parts, train=parts.train[np.arange(len(parts.train.labels))[:inputs]])
    measured = with_normalisation(chosen, parts.train)
    network = build_network(measured, parts.input, len(parts.classes), CPU)
    run = Run(chosen, measured, FixedPointObjective(network, chosen), parts, CPU, Processes())
    network.train()
    rows = torch.randint(len(parts.train.labels), (steps + BATCHES, chosen.optimisation.batch_size))
    for batch in run.load_batches([*rows[:steps]]):
        run.learn(*batch)
    batches = [*run.load_batches([*rows[steps:]])]

    fit.STEPS = 50
    network.eval()
    start = time.process_time()
    mixing = fit.fit_mixing(network, parts.train.inputs, device=CPU, console=console)
    typer.echo(f"fit: {time.process_time() - start:.1f} s")
    network.train()

    def search(solver: Solver) -> tuple[float, Tensor]:
        """Milliseconds per batch, and iterations."""
        settings = chosen.search
        with torch.no_grad():
            injections = [network.inject(batch) for batch, _ in batches]
        start = time.process_time()
        found = [
            jfb.solve(
                network,
                injection,
                tolerance=settings.tolerance,
                max_iterations=settings.max_iterations,
                residual_norm=settings.residual_norm,
                solver=solver,
            ).iterations
            for injection in injections
        ]
        return 1000 * (time.process_time() - start) / BATCHES, torch.cat(found).double()

    solvers = {"picard": Picard(), "mixing": mixing}
    runs = [{name: search(solver) for name, solver in solvers.items()} for _ in range(ROUNDS)]
    for name in solvers:
        typer.echo(f"{name}: {min(run[name][0] for run in runs):.2f} ms, {runs[0][name][1].mean():.2f} iterations")
    start = time.process_time()
    for batch in batches:
        run.learn(*batch)
    typer.echo(f"whole step, with picard: {1000 * (time.process_time() - start) / BATCHES:.1f} ms")


if __name__ == "__main__":
    typer.run(main)
