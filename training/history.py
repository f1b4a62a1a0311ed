"""History: one line an epoch."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Epoch:
    """What is known at the end of an epoch. Accuracies are shares; iterations are means per input."""

    epoch: int
    """From 1."""
    seconds: float
    """Since training began."""
    learning_rate: float
    """At the end of the epoch."""
    train_loss: float
    """With label smoothing, augmentation and dropout, while the weights moved."""
    train_accuracy: float
    train_iterations: float
    validation_loss: float
    """Of the averaged weights, at the serving tolerance; so are the other two."""
    validation_accuracy: float
    validation_iterations: float
    contraction_bound: float | None
    """Guaranteed upper bound on γ; none for networks without a guarantee."""


def write_history(path: Path, history: list[Epoch]) -> None:
    """Write ``history.csv``."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)
