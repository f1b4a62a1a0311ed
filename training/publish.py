"""Publish: a trained network becomes a version in the model store."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from jfb.checkpoint import save
from jfb.config import ModelConfig
from jfb.store import new_version
from training.card import write_card
from training.curves import draw_curves
from training.data import Data
from training.evaluation import evaluate
from training.evaluation_report import write_evaluation
from training.history import write_history
from training.stored import with_serving
from training.train import Trained

MOST_SAMPLES = 10


def publish(trained: Trained, data: Data, store: Path, console: Console) -> Path:
    """Write config, weights, metrics, history, curves, evaluation and model card as the next version of the recipe's model.

    Returns:
        The version's folder, ``store/<name>/<version>``.
    """
    recipe = trained.recipe
    config = ModelConfig(
        architecture=trained.architecture,
        input=data.input,
        classes=data.classes,
        serving=recipe.serving,
        provenance={
            "recipe": recipe.model_dump(mode="json", exclude_none=True),
            "inputs": {part: len(getattr(data, part).labels) for part in ("train", "validation", "test")},
            "jfb": version("jfb"),
            "torch": torch.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    device = next(trained.network.parameters()).device
    evaluation = evaluate(trained.network, config, data, device=device, console=console)
    config = with_serving(config, label_calibration=evaluation.label_stops.calibration)
    new = new_version(store, recipe.name)
    with new as folder:
        save(folder, config, trained.network)
        (folder / "metrics.json").write_text(json.dumps(metrics(trained), indent=2) + "\n")
        write_history(folder / "history.csv", trained.history)
        draw_curves(folder / "curves.png", recipe.name, trained.history)
        (folder / "samples.json").write_text(json.dumps(samples(data), separators=(",", ":")) + "\n")
        write_evaluation(folder, recipe.name, evaluation)
        write_card(folder, recipe.name)
    return new.folder


def samples(data: Data) -> list[dict[str, Any]]:
    """What ``samples.json`` holds: a test input of each of the first classes, to try the model with. Raw, as clients send it."""
    labels = data.test.labels.tolist()
    first = {place: labels.index(place) for place in range(min(len(data.classes), MOST_SAMPLES)) if place in labels}
    return [{"input": data.test.inputs[row].tolist(), "label": data.classes[place]} for place, row in first.items()]


def metrics(trained: Trained) -> dict[str, Any]:
    """What ``metrics.json`` says: of the test part, but for what is named otherwise; shares, not percentages.

    ``epoch`` is the one whose averaged weights these are: the best of ``epochs`` by validation accuracy.
    """
    return {
        "accuracy": trained.test.accuracy,
        "loss": trained.test.loss,
        "iterations": trained.test.iterations,
        "converged": trained.test.converged,
        "validation_accuracy": trained.validation.accuracy,
        "epoch": trained.epoch,
        "epochs": len(trained.history),
        "parameters": sum(parameter.numel() for parameter in trained.network.parameters()),
        "seconds": trained.seconds,
        "contraction_bound": trained.contraction_bound,
        "contraction_factor": trained.contraction_factor,
    }
