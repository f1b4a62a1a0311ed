"""Data: the three parts that a model is trained with, chosen by and judged by, in memory."""

from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from jfb.config import InputSpec
from training.errors import DataError
from training.recipe import DataRecipe
from training.sources import Split, read

SPLIT_SEED = 0
"""Of the splits by share. Not a choice: a test part that changed from run to run would be trained on sooner or later."""


@dataclass(frozen=True)
class Data:
    """Training, validation and test parts; no input is in two of them."""

    train: Split
    validation: Split
    """What a run is watched and tuned by."""
    test: Split
    """Touched once, for the final report."""
    classes: list[str]
    input: InputSpec


def load_data(recipe: DataRecipe, console: Console) -> Data:
    """Read what the data section of a recipe names, and part it.

    Parts that are given as shares of the training split are drawn stratified by class, always the same.

    Raises:
        DataError: for what the source does not have or cannot be read, and for splits that are too small to be parted.
    """
    named = [recipe.train, *(part for part in (recipe.validation, recipe.test) if isinstance(part, str))]
    if len(set(named)) != len(named):
        raise DataError(f"data: training, validation and test parts must differ, got the splits {', '.join(named)}")
    source = read(recipe, named, console)
    train = source.splits[recipe.train]
    # The test part is cut off first, so that it does not depend on the share for validation.
    train, test = _part(train, recipe.test, source.splits, "test")
    train, validation = _part(train, recipe.validation, source.splits, "validation")
    spec = InputSpec(shape=tuple(train.inputs.shape[1:]), kind=source.kind, low=source.low, high=source.high)
    for name, split in (("validation", validation), ("test", test)):
        if split.inputs.shape[1:] != train.inputs.shape[1:]:
            raise DataError(f"data.{name}: inputs have shape {list(split.inputs.shape[1:])}, training's have {list(spec.shape)}")
    return Data(train, validation, test, source.classes, spec)


def measure_normalisation(inputs: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of raw inputs ``[n, *input_shape]`` per channel (dimension 1).

    Channels that never change get a standard deviation of one.
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
    """What stays for training, and the part asked for."""
    if isinstance(part, str):
        return train, splits[part]
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(train.labels))
    try:
        kept, apart = train_test_split(rows, test_size=part, random_state=SPLIT_SEED, stratify=train.labels.numpy())
    except ValueError as error:
        raise DataError(f"data.{name}: cannot keep a share of {part} of {len(rows)} inputs apart: {error}") from error
    kept, apart = np.sort(kept), np.sort(apart)
    return Split(train.inputs[kept], train.labels[kept]), Split(train.inputs[apart], train.labels[apart])
