"""Difficulty: accuracy and iterations of easy and hard inputs, for data that says how hard an input is."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data import Split
from training.evaluation.trajectories import Trajectories

BINS = 6
"""Ranges of difficulty, at most; each holds about as many inputs as the others."""
WIDTH = "image_width"
"""Name of the measure by which data of other sizes are compared."""


@dataclass(frozen=True)
class DifficultyOutcome:
    """Accuracy and cost of the inputs in one range of difficulty, at one tolerance and the model's cap."""

    measure: str
    """Name of the measure of difficulty."""
    low: int
    high: int
    """Range of the measure, inclusive."""
    tolerance: float
    inputs: int
    accuracy: float
    """In [0, 1]."""
    iterations: float
    """Mean per input."""


def by_difficulty(
    part: Trajectories, split: Split, tolerances: tuple[float, ...], max_iterations: int
) -> list[DifficultyOutcome]:
    """Summarise a split by each measure of difficulty that it has, at every tolerance; empty if it has none."""
    return [
        _outcome(measure, low, high, part, split, (column >= low) & (column <= high), tolerance, max_iterations)
        for measure, column in split.difficulty.items()
        for low, high in _ranges(column)
        for tolerance in tolerances
    ]


def by_width(
    parts: Sequence[tuple[Trajectories, Split]], tolerances: tuple[float, ...], max_iterations: int
) -> list[DifficultyOutcome]:
    """Summarise splits whose images have different sizes, each as one range, by their width in pixels."""
    found = []
    for part, split in parts:
        width, every = split.inputs.shape[-1], torch.ones(len(split.labels), dtype=torch.bool)
        for tolerance in tolerances:
            found.append(_outcome(WIDTH, width, width, part, split, every, tolerance, max_iterations))
    return found


def describe_range(low: int, high: int) -> str:
    return f"{low} to {high}" if low < high else str(low)


def _outcome(
    measure: str, low: int, high: int, part: Trajectories, split: Split, rows: Tensor, tolerance: float, max_iterations: int
) -> DifficultyOutcome:
    answers = part.answers(tolerance, max_iterations)
    return DifficultyOutcome(
        measure=measure,
        low=low,
        high=high,
        tolerance=tolerance,
        inputs=int(rows.sum()),
        accuracy=float((answers.index == split.labels)[rows].double().mean()),
        iterations=float(answers.iterations[rows].double().mean()),
    )


def _ranges(column: Tensor) -> list[tuple[int, int]]:
    """Return ranges of values, inclusive, that hold about equally many of a column's entries; equal entries stay together."""
    values, counts = torch.unique(column, return_counts=True)
    before = (counts.cumsum(0) - counts).double() + counts / 2
    bins = (before * BINS / len(column)).long()
    return [(int(values[bins == index].min()), int(values[bins == index].max())) for index in bins.unique()]
