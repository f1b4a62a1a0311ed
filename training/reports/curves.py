"""curves.png: loss, accuracy and iterations over the epochs."""

from pathlib import Path

from jfb.store import CURVES
from training.loop.history import Epoch


def draw_curves(folder: Path, name: str, history: list[Epoch]) -> None:
    """Write ``curves.png``: loss, accuracy and iterations over the epochs of a run, for training and validation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [entry.epoch for entry in history]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(name)
    panels = {
        "loss": ([e.train_loss for e in history], [e.validation_loss for e in history]),
        "accuracy (%)": ([100 * e.train_accuracy for e in history], [100 * e.validation_accuracy for e in history]),
        "iterations per input": ([e.train_iterations for e in history], [e.validation_iterations for e in history]),
    }
    for axes, (label, (train, validation)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        marker = "o" if len(epochs) == 1 else None  # a line of one point is invisible
        axes.plot(epochs, train, marker=marker, label="training")
        axes.plot(epochs, validation, marker=marker, label="validation")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / CURVES, dpi=120)
