"""History: what is measured in each epoch, and its file, history.csv."""

from dataclasses import dataclass
from pathlib import Path

from jfb.store import HISTORY, write_table


@dataclass(frozen=True)
class Epoch:
    """Measurements of an epoch. Accuracies are in [0, 1]; iterations are means per input."""

    epoch: int
    """Counted from 1."""
    seconds: float
    """Since training started."""
    learning_rate: float
    """At the end of the epoch."""
    train_loss: float
    """Over the epoch, while the weights change; with label smoothing, augmentation and dropout."""
    train_accuracy: float
    train_iterations: float
    validation_loss: float
    """Of the averaged weights, at the serving tolerance; likewise the other two."""
    validation_accuracy: float
    validation_iterations: float
    contraction_bound: float | None
    """Guaranteed upper bound on γ; None for networks without a guarantee."""


def write_history(folder: Path, history: list[Epoch]) -> None:
    """Write ``history.csv`` into a folder: one line per epoch."""
    write_table(folder / HISTORY, Epoch, history)
