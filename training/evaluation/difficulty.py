"""Difficulty: accuracy and iterations of easy and hard inputs, for data that says how hard an input is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data import Split
from training.evaluation.trajectories import Trajectories

BINS = 6
"""Ranges of difficulty, at most; each holds about as many inputs as the others."""


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
    found = []
    for measure, column in split.difficulty.items():
        for low, high in _ranges(column):
            rows = (column >= low) & (column <= high)
            for tolerance in tolerances:
                answers = part.answers(tolerance, max_iterations)
                found.append(
                    DifficultyOutcome(
                        measure=measure,
                        low=low,
                        high=high,
                        tolerance=tolerance,
                        inputs=int(rows.sum()),
                        accuracy=float((answers.index == split.labels)[rows].double().mean()),
                        iterations=float(answers.iterations[rows].double().mean()),
                    )
                )
    return found


def _ranges(column: Tensor) -> list[tuple[int, int]]:
    """Return ranges of values, inclusive, that hold about equally many of a column's entries; equal entries stay together."""
    values, counts = torch.unique(column, return_counts=True)
    before = (counts.cumsum(0) - counts).double() + counts / 2
    bins = (before * BINS / len(column)).long()
    return [(int(values[bins == index].min()), int(values[bins == index].max())) for index in bins.unique()]
