"""Draw docs/guides/fewer_iterations.png: the residual after each iteration, with every solver of an accelerated model.

python -m training accelerate authors_mnist --start --recipe mnist --data DIR
python docs/draw_solvers.py model_store/authors_mnist/2 --data DIR
"""

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import torch
import typer
from rich.console import Console
from torch import Tensor

import jfb
from jfb import ImplicitNetwork, ResidualNorm, residual
from jfb.solvers import Solver
from training.data import read
from training.recipe import DataRecipe

mpl.use("Agg")
from matplotlib import pyplot as plt

CURVES = {
    "picard": ("picard", False, "#2a6f97", "-"),
    "anderson": ("anderson", False, "#e8a33d", "-"),
    "mixing": ("mixing", False, "#b5443c", "-"),
    "learned start, picard": ("picard", True, "#2a6f97", "--"),
    "learned start, mixing": ("mixing", True, "#b5443c", "--"),
}
"""Solver, whether from the learned start, colour and style."""
ITERATIONS = 60
SHOWN_UNTIL = 1e-5


@torch.no_grad()
def residuals(network: ImplicitNetwork, inputs: Tensor, solver: Solver, norm: ResidualNorm, *, started: bool) -> Tensor:
    """The residual of each input after each iteration, ``[ITERATIONS, n]``."""
    injection = network.inject(inputs)
    state = network.first_state(injection) if started else network.initial_state(injection)
    memory = solver.start(state)
    found = []
    for _ in range(ITERATIONS):
        next_state = solver.evaluate(network, memory, state, injection)
        found.append(residual(state, next_state, norm))
        state = solver.propose(memory, state, next_state)
    return torch.stack(found)


def main(
    model: Annotated[Path, typer.Argument(help="The folder of an accelerated version.")],
    data: Annotated[str, typer.Option(help="A data set, as recipes name it.")],
    split: Annotated[str, typer.Option(help="Of the data set.")] = "test",
) -> None:
    """Draw the median and the range of 90 in 100 inputs."""
    checkpoint = jfb.load(model)
    norm = checkpoint.config.serving.residual_norm
    inputs = read(DataRecipe(source=data), [split], Console(stderr=True)).splits[split].inputs[:500].float()
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    numbers = torch.arange(1, ITERATIONS + 1)
    for label, (name, started, colour, style) in CURVES.items():
        if started and checkpoint.network.learned_start is None:
            continue
        found = residuals(checkpoint.network, inputs, checkpoint.solvers[name], norm, started=started)
        low, median, high = found.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=1)
        shown = median > SHOWN_UNTIL
        axes.plot(numbers[shown], median[shown], color=colour, linestyle=style, label=label)
        axes.fill_between(numbers[shown], low[shown], high[shown], color=colour, alpha=0.15, linewidth=0)
    axes.set(yscale="log", xlabel="iteration", ylabel=f"residual ({norm})", xlim=(1, None))
    axes.set_title(f"{model.resolve().parent.name}: the residual of 500 inputs, median and 90 in 100")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(Path(__file__).parent / "guides" / "fewer_iterations.png", dpi=120)


if __name__ == "__main__":
    typer.run(main)
