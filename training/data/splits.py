"""Splits: the training, validation and test parts, in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import JsonValue
from rich.console import Console
from torch import Tensor

from jfb.config import InputSpec
from training.data.sources import Split, read
from training.errors import DataError
from training.recipe import DataRecipe, Recipe

SPLIT_SEED = 0
"""Seed of the splits by fraction. Not configurable: a test part that changed between runs would leak into training."""


@dataclass(frozen=True)
class Data:
    """Training, validation and test parts; no input is in two of them."""

    train: Split
    validation: Split
    """Used during training, to select the best epoch and to choose hyperparameters."""
    test: Split
    """Used only to report: for the metrics of a trained model and for its evaluation. Nothing is selected by it."""
    classes: list[str]
    input: InputSpec
    curriculum: tuple[Split, ...] = ()
    """Training parts of the recipe's curriculum, whose inputs may have other shapes."""
    generalisation: tuple[Split, ...] = ()
    """Other test parts to report, whose inputs may have other shapes."""


def load_data(recipe: Recipe, console: Console) -> Data:
    """Load all data that a recipe names: its three parts, the training parts of its curriculum, and other test parts.

    Raises:
        DataError: as ``load_parts``, and for other data with other classes.
    """
    data = load_evaluation_data(recipe, console)
    stages = [(f"curriculum.{number}", stage.data) for number, stage in enumerate(recipe.curriculum)]
    return replace(data, curriculum=tuple(part.train for part in _load_others(recipe, stages, data.classes, console)))


def load_evaluation_data(recipe: Recipe, console: Console) -> Data:
    """Load what evaluation needs of the data that a recipe names: as ``load_data``, without the curriculum."""
    data = load_parts(recipe.data, console)
    others = [(f"generalisation.{number}", changes) for number, changes in enumerate(recipe.generalisation)]
    return replace(data, generalisation=tuple(part.test for part in _load_others(recipe, others, data.classes, console)))


def _load_others(
    recipe: Recipe, others: Sequence[tuple[str, dict[str, JsonValue]]], classes: list[str], console: Console
) -> Iterator[Data]:
    """Load a recipe's data with changes, each named by its key in the recipe."""
    for key, changes in others:
        data = load_parts(recipe.changed_data(changes), console)
        if data.classes != classes:
            raise DataError(f"{key}: classes must be {classes[:20]} (got {data.classes[:20]})")
        yield data


def load_parts(recipe: DataRecipe, console: Console) -> Data:
    """Load the data of one data section, split into its three parts.

    Parts that the recipe gives as fractions are drawn from the training split, stratified by class, always with the same seed.

    Raises:
        DataError: for a source that cannot be read or lacks what the recipe names, or a split that is too small to divide.
    """
    named = [recipe.train, *(part for part in (recipe.validation, recipe.test) if isinstance(part, str))]
    if len(set(named)) != len(named):
        raise DataError(f"data: training, validation and test must be different splits (got {', '.join(named)})")
    source = read(recipe, named, console)
    train = source.splits[recipe.train]
    # The test part comes first, so that it does not depend on the fraction for validation.
    train, test = _part(train, recipe.test, source.splits, "test")
    train, validation = _part(train, recipe.validation, source.splits, "validation")
    spec = InputSpec(shape=tuple(train.inputs.shape[1:]), kind=source.kind, low=source.low, high=source.high)
    for name, split in (("validation", validation), ("test", test)):
        if split.inputs.shape[1:] != train.inputs.shape[1:]:
            shape = list(split.inputs.shape[1:])
            raise DataError(f"data.{name}: inputs must have the training split's shape {list(spec.shape)} (got {shape})")
    return Data(train, validation, test, source.classes, spec)


def measure_normalisation(inputs: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of raw inputs ``[n, *input_shape]`` per channel (dimension 1).

    The standard deviation of a constant channel is set to one.
    """
    total = torch.zeros(inputs.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(inputs, 4096):
        channels = chunk.transpose(0, 1).flatten(1).double()
        total += channels.sum(1)
        squares += channels.square().sum(1)
    count = inputs.numel() / inputs.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, torch.ones_like(std))
    return [round(value, 6) for value in mean.tolist()], [float(f"{value:.6g}") for value in std.tolist()]


def _part(train: Split, part: str | float, splits: dict[str, Split], name: str) -> tuple[Split, Split]:
    """Return what remains for training, and the part."""
    if isinstance(part, str):
        return train, splits[part]
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(train.labels))
    try:
        kept, held_out = train_test_split(rows, test_size=part, random_state=SPLIT_SEED, stratify=train.labels.numpy())
    except ValueError as error:
        raise DataError(f"data.{name}: cannot hold out {part:g} of {len(rows)} inputs: {error}") from error
    kept, held_out = np.sort(kept), np.sort(held_out)
    return train[kept], train[held_out]
