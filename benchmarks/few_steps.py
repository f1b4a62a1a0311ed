"""A recipe for a GPU on a CPU, for a few hundred steps, to check that it trains.

Trains three epochs on a part of the training data that has ``--steps`` batches in all, without the moving average of the
weights, which lags behind in such a short run. The loss must fall in every epoch, the guaranteed bound of the contraction must
stay below one, and the iterations must stay below half of the cap. Otherwise the exit status is 1.

    python -m benchmarks.few_steps cifar10_small --data uoft-cs/cifar10 --steps 300 --batch-size 32
    python -m benchmarks.few_steps cifar10 --data uoft-cs/cifar10 --steps 200 --batch-size 16
"""

import sys
from dataclasses import replace
from itertools import pairwise
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from training.data import Data, Split, load_data
from training.loop.train import Trained, train
from training.recipe import Recipe, load_recipe

EPOCHS = 3


def cut_short(recipe: Recipe, data: Data, steps: int, batch_size: int, console: Console) -> Trained:
    """Train for at most ``steps`` steps on a part of the data; evaluate on at most 500 inputs per part."""
    recipe = recipe.changed({"optimisation.epochs": EPOCHS, "optimisation.batch_size": batch_size, "optimisation.averaging": 0.0})
    rows = torch.randperm(len(data.train.labels), generator=torch.Generator().manual_seed(0))[: steps // EPOCHS * batch_size]
    data = replace(
        data,
        train=Split(data.train.inputs[rows], data.train.labels[rows]),
        validation=Split(data.validation.inputs[:500], data.validation.labels[:500]),
        test=Split(data.test.inputs[:500], data.test.labels[:500]),
    )
    return train(recipe, data, device=torch.device("cpu"), console=console)


def find_problems(trained: Trained) -> list[str]:
    """Return one message per requirement that is not met."""
    history, cap = trained.history, trained.recipe.search.max_iterations
    found = []
    for before, after in pairwise(history):
        if not after.train_loss < before.train_loss:
            found.append(
                f"epoch {after.epoch}: the loss did not fall ({before.train_loss:.3f} before, {after.train_loss:.3f} after)"
            )
    for epoch in history:
        if epoch.contraction_bound is None or not epoch.contraction_bound < 1:
            found.append(f"epoch {epoch.epoch}: contraction bound must be below 1 (got {epoch.contraction_bound})")
        if not epoch.train_iterations < cap / 2:
            found.append(
                f"epoch {epoch.epoch}: mean iterations must be below half of the cap {cap} (got {epoch.train_iterations:.1f})"
            )
    return found


def main(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe, or the path of a .yaml file.")],
    data: Annotated[str | None, typer.Option(help="A hub id or a folder in place of the recipe's source.")] = None,
    steps: Annotated[int, typer.Option(min=EPOCHS, help="Training steps in total.")] = 300,
    batch_size: Annotated[int, typer.Option(min=2)] = 32,
) -> None:
    """Train, print a table, and report what is wrong."""
    console = Console(width=120)
    chosen = load_recipe(recipe)
    if data:
        chosen = chosen.changed({"data.source": data})
    trained = cut_short(chosen, load_data(chosen, console), steps, batch_size, console)
    table = Table(
        *("epoch", "loss", "accuracy", "iterations", "validation accuracy", "contraction bound"),
        title=f"{chosen.name}: {steps} steps of {batch_size}, search in {trained.recipe.search.precision}",
    )
    for epoch in trained.history:
        table.add_row(
            str(epoch.epoch),
            f"{epoch.train_loss:.3f}",
            f"{epoch.train_accuracy:.1%}",
            f"{epoch.train_iterations:.2f}",
            f"{epoch.validation_accuracy:.1%}",
            "" if epoch.contraction_bound is None else f"{epoch.contraction_bound:.3f}",
        )
    console.print(table)
    console.print(f"measured contraction factor at fixed points: at most {trained.contraction_factor:.3f}")
    problems = find_problems(trained)
    for problem in problems:
        console.print(f"[red]{problem}[/red]")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    typer.run(main)
