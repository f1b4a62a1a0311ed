"""The model store in training: find and load versions, and write a trained network as a new one."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from jfb import Checkpoint, CheckpointError, ModelConfig, __version__, load
from jfb.checkpoint import find_folder, save
from jfb.solvers import Mixing
from jfb.store import Sample, write_metrics, write_samples
from training.data import Data
from training.errors import ModelError, RecipeError
from training.loop.history import write_history
from training.loop.network import count_parameters
from training.loop.train import Trained
from training.recipe import Recipe, load_recipe

MAX_SAMPLES = 10


def find_version(model: str, store: Path) -> Path:
    """Return the folder of a version.

    Args:
        model: a name in the store, for its highest version; ``name/version``; or the path of a version's folder.

    Raises:
        ModelError: if there is no such version.
    """
    try:
        return find_folder(model, store)
    except CheckpointError as error:
        raise ModelError(str(error)) from error


def load_version(folder: Path, device: torch.device) -> Checkpoint:
    """Load a version, with an error that the command line prints.

    Raises:
        ModelError: for a folder that is not a model.
    """
    try:
        return load(folder, device)
    except CheckpointError as error:
        raise ModelError(str(error)) from error


def recipe_of(config: ModelConfig, folder: Path, instead: str | None) -> Recipe:
    """Return the recipe that a model was trained with, or another one for its data.

    Raises:
        RecipeError: for a model that was not trained here, if no other recipe is given.
    """
    if instead is not None:
        return load_recipe(instead)
    if "recipe" not in config.provenance:
        raise RecipeError(f"--recipe is required: {folder} does not contain the recipe that it was trained with")
    return Recipe.model_validate(config.provenance["recipe"])


def with_serving(config: ModelConfig, **changes: object) -> ModelConfig:
    """Return a copy of a config with changes in its serving section."""
    return config.model_copy(update={"serving": config.serving.model_copy(update=changes)})


def model_config(trained: Trained, data: Data) -> ModelConfig:
    """Return the config of a trained network."""
    return ModelConfig(
        architecture=trained.architecture,
        input=data.input,
        classes=data.classes,
        serving=trained.recipe.serving.before,
        provenance={
            "recipe": trained.recipe.model_dump(mode="json", exclude_none=True),
            "inputs": {part: len(getattr(data, part).labels) for part in ("train", "validation", "test")},
            "jfb": __version__,
            "torch": torch.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def write_trained(folder: Path, config: ModelConfig, trained: Trained, data: Data, mixing: Mixing | None = None) -> None:
    """Write config, weights, metrics, history and samples into the folder of a new version."""
    save(folder, config, trained.network, mixing)
    write_metrics(folder, metrics(trained))
    write_samples(folder, samples(data))
    write_history(folder, trained.history)


def metrics(trained: Trained) -> dict[str, Any]:
    """Return the content of ``metrics.json``: measured on the test part unless named otherwise; accuracies are in [0, 1].

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
        "parameters": count_parameters(trained.network),
        "seconds": trained.seconds,
        "contraction_bound": trained.contraction_bound,
        "contraction_norm": trained.network.bound_norm.value,
        "contraction_factor": trained.contraction_factor,
    }


def samples(data: Data) -> list[Sample]:
    """Return the content of ``samples.json``: a raw test input of each of the first classes, to try the model with."""
    labels = data.test.labels.tolist()
    first = {index: labels.index(index) for index in range(min(len(data.classes), MAX_SAMPLES)) if index in labels}
    return [Sample(data.test.inputs[row].tolist(), data.classes[index]) for index, row in first.items()]
