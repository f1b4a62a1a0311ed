"""Accuracy on mazes by cap and by tolerance, also on larger mazes with the same weights.

    python -m training train mazes
    OMP_NUM_THREADS=1 python -m benchmarks.mazes model_store/mazes/1

Prints the tables of benchmarks/results/mazes.md.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from jfb import Checkpoint, load
from training.data.mazes import Mazes, distinct_mazes
from training.evaluation.trajectories import Trajectories, record
from training.reports.tables import markdown_table

CAPS = (1, 2, 4, 8, 16, 32, 64)
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
SEED = 1_000_000
"""Of mazes that no recipe uses."""


def main(
    folder: Annotated[Path, typer.Argument(help="The folder of a version.")],
    count: Annotated[int, typer.Option(help="Mazes per size.")] = 500,
    sizes: Annotated[str, typer.Option(help="Cells per side, separated by commas.")] = "8,12,16,24",
) -> None:
    """Print the tables."""
    checkpoint = load(folder)
    parts = {int(size): distinct_mazes(int(size), count, seed=SEED) for size in sizes.split(",")}
    courses = {size: _record(checkpoint, mazes) for size, mazes in parts.items()}
    first = min(parts)
    labels = torch.from_numpy(parts[first].labels)

    print(f"Size {first}, {count:,} mazes, by cap:\n")
    accuracies = [f"{_accuracy(courses[first], labels, 1e-4, cap):.1%}" for cap in CAPS]
    print(markdown_table(("iterations", *map(str, CAPS)), [("accuracy", *accuracies)]))

    print("\nBy size and tolerance, accuracy and mean iterations:\n")
    rows = []
    for size, mazes in parts.items():
        labels = torch.from_numpy(mazes.labels)
        cells = []
        for tolerance in TOLERANCES:
            answers = courses[size].answers(tolerance, courses[size].residual.shape[1])
            cells.append(f"{_share(answers.index == labels)}, {answers.iterations.double().mean():.1f}")
        rows.append((f"{size} ({2 * size - 1} × {2 * size - 1} pixels)", *cells))
    print(markdown_table(("size", *(f"{tolerance:g}" for tolerance in TOLERANCES)), rows))

    iterations = courses[first].answers(1e-4, courses[first].residual.shape[1]).iterations.double()
    print(f"\nCorrelation of iterations at 1e-4 on size {first}:")
    for measure in ("flood_depth", "path_length"):
        column = torch.from_numpy(getattr(parts[first], measure)).double()
        print(f"- with {measure}: {float(torch.corrcoef(torch.stack([iterations, column]))[0, 1]):.2f}")
    nearest = _nearest(parts[first]) == torch.from_numpy(parts[first].labels)
    print(f"- the exit nearest in a straight line is right in {_share(nearest)}")


def _record(checkpoint: Checkpoint, mazes: Mazes) -> Trajectories:
    return record(
        checkpoint.network,
        torch.from_numpy(mazes.images()),
        checkpoint.config.serving,
        tolerance=min(TOLERANCES),
        max_iterations=int(mazes.flood_depth.max()) + 20,
        device=torch.device("cpu"),
        console=Console(quiet=True),
        batch_size=100,
    )


def _accuracy(course: Trajectories, labels: Tensor, tolerance: float, cap: int) -> float:
    answers = course.answers(tolerance, min(cap, course.residual.shape[1]))
    return float((answers.index == labels).double().mean())


def _share(right: Tensor) -> str:
    return f"{float(torch.as_tensor(right).double().mean()):.1%}"


def _nearest(mazes: Mazes) -> Tensor:
    """The exit that is nearest to the source in a straight line."""
    places = [torch.from_numpy(mazes.pixels == value).flatten(1).long().argmax(1) for value in range(2, 7)]
    side = mazes.pixels.shape[1]
    source, *exits = (torch.stack([place // side, place % side], 1).double() for place in places)
    return torch.stack([(place - source).norm(dim=1) for place in exits], 1).argmin(1)


if __name__ == "__main__":
    typer.run(main)
