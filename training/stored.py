"""Stored: finding a model that is in the store, and the data that it was trained with."""

from pathlib import Path

import torch

from jfb import Checkpoint, CheckpointError, ModelConfig, load
from jfb.store import CONFIG, list_models, list_versions
from training.errors import ModelError, RecipeError
from training.recipe import Recipe, load_recipe


def find_version(model: str, store: Path) -> Path:
    """The folder of a version.

    Args:
        model: a name in the store, which means its highest version; ``name/version``; or the path of a version's folder.

    Raises:
        ModelError: if there is no such version.
    """
    for folder in (store / model, Path(model)):
        if (folder / CONFIG).is_file():
            return folder
    if found := list_versions(store / model):
        return store / model / str(found[-1])
    raise ModelError(
        f"no model {model!r}: expected the folder of a version, or a name in {store}, which holds "
        f"{', '.join(list_models(store)) or 'none'}"
    )


def load_version(folder: Path, device: torch.device) -> Checkpoint:
    """``jfb.load``, with an error that the command line prints.

    Raises:
        ModelError: for whatever cannot be loaded.
    """
    try:
        return load(folder, device)
    except CheckpointError as error:
        raise ModelError(str(error)) from error


def with_serving(config: ModelConfig, **changes: object) -> ModelConfig:
    """A copy of a config in whose serving section some fields are others."""
    return config.model_copy(update={"serving": config.serving.model_copy(update=changes)})


def recipe_of(config: ModelConfig, folder: Path, instead: str | None) -> Recipe:
    """The recipe that a model was trained by, or another one, whose data it is evaluated on.

    Raises:
        RecipeError: for a model that was not trained here, if no other recipe is given.
    """
    if instead is not None:
        return load_recipe(instead)
    if "recipe" not in config.provenance:
        raise RecipeError(f"{folder}: does not say what data it was trained with; name a recipe with --recipe")
    return Recipe.model_validate(config.provenance["recipe"])
