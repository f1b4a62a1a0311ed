"""Sources: read a data set into one tensor per split."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from jfb.config import must_be_one_of
from jfb.images import to_pixels, upright
from training.data.mazes import COLOURS, MazesRecipe, generate_splits
from training.errors import DataError
from training.recipe import DataRecipe

DIGITS = "sklearn/digits"
MAZES = "mazes"


@dataclass(frozen=True)
class Split:
    """One split of a source, decoded, in memory."""

    inputs: Tensor
    """uint8 or float32 ``[n, *input_shape]``."""
    labels: Tensor
    """int64 ``[n]``, indices into ``Source.classes``."""
    difficulty: dict[str, Tensor] = field(default_factory=dict)
    """Measures of how hard each input is, by name, int64 ``[n]``, for sources that know."""

    def __getitem__(self, rows: NDArray[np.int64]) -> "Split":
        return Split(self.inputs[rows], self.labels[rows], {name: column[rows] for name, column in self.difficulty.items()})


@dataclass(frozen=True)
class Source:
    """A data set in memory."""

    splits: dict[str, Split]
    classes: list[str]
    kind: Literal["image", "vector"]
    low: float | None
    high: float | None


def read(recipe: DataRecipe, splits: list[str], console: Console) -> Source:
    """Read some splits of a recipe's source into memory, with a progress bar.

    Raises:
        DataError: for a source, split or column that does not exist, an unreadable image, images of several shapes, or labels
            that the training split does not have.
    """
    check(recipe)
    if recipe.source == MAZES:
        return _read_mazes(recipe, splits)
    return _read_digits(splits) if recipe.source == DIGITS else _read_datasets(recipe, splits, console)


def check(recipe: DataRecipe) -> tuple[int, ...] | None:
    """Check what can be checked of a source before it is read, and return the shape of its inputs if that is known.

    Raises:
        DataError: for arguments that the source does not take, or a local folder that does not exist.
    """
    if recipe.source == MAZES:
        side = 2 * _mazes_recipe(recipe).size - 1
        return (3, side, side)
    if recipe.arguments:
        raise DataError(f"data.arguments: only {MAZES} takes arguments (got {', '.join(recipe.arguments)})")
    if recipe.source == DIGITS:
        return (1, 8, 8)
    if recipe.source.startswith((".", "/", "~")) and not Path(recipe.source).expanduser().is_dir():
        raise DataError(f"data.source: must be a folder (got {recipe.source!r}, which is none)")
    return recipe.shape


def _mazes_recipe(recipe: DataRecipe) -> MazesRecipe:
    try:
        return MazesRecipe.model_validate(recipe.arguments)
    except ValidationError as error:
        problem = error.errors()[0]
        key, rule = ".".join(map(str, problem["loc"])), problem["msg"].replace("Input should", "must")
        raise DataError(f"data.arguments.{key}: {rule} (got {problem['input']!r})") from error


def _read_mazes(recipe: DataRecipe, splits: list[str]) -> Source:
    """Generate the mazes that a recipe describes."""
    generated = generate_splits(_mazes_recipe(recipe))
    for split in splits:
        if split not in generated:
            raise DataError(f"data: {MAZES}: split: {must_be_one_of(generated, split)}")
    decoded = {
        split: Split(
            torch.from_numpy(mazes.images()),
            torch.from_numpy(mazes.labels),
            {name: torch.from_numpy(getattr(mazes, name)) for name in ("path_length", "flood_depth")},
        )
        for split, mazes in generated.items()
    }
    return Source(decoded, list(COLOURS), "image", 0.0, 255.0)


def _read_digits(splits: list[str]) -> Source:
    """Read scikit-learn's 1,797 handwritten digits (8 by 8 pixels, 0 to 16), which come with the library."""
    from sklearn.datasets import load_digits

    for split in splits:
        if split != "train":
            raise DataError(f"data: {DIGITS} has only the split train, no {split!r}; use a fraction of it, such as 0.2")
    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return Source({"train": Split(images, labels)}, [str(name) for name in digits.target_names], "image", 0.0, 16.0)


def _read_datasets(recipe: DataRecipe, splits: list[str], console: Console) -> Source:
    """Read with Hugging Face ``datasets``: from the hub, a folder of parquet files, or a folder of images."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from datasets.features import Image as ImageFeature

    folder = Path(recipe.source).expanduser()
    expected = "of parquet files, or of images in one subfolder per class"
    if not folder.is_dir():
        expected = f"{expected}, or a data set on the Hugging Face hub (without a network, name a folder with --data)"
    try:
        found = load_dataset(str(folder) if folder.is_dir() else recipe.source, recipe.configuration)
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(f"data.source: must be a folder {expected} (got {recipe.source!r}): {error}") from error
    for split in splits:
        if split not in found:
            raise DataError(f"data: {recipe.source}: split: {must_be_one_of(found, split)}")
    features = found[splits[0]].features
    for key, column in (("inputs", recipe.inputs), ("labels", recipe.labels)):
        if column not in features:
            if list(features) == ["image"]:  # a folder of images without subfolders
                raise DataError(f"data.labels: {recipe.source}: no label column: put the images into one subfolder per class")
            raise DataError(f"data.{key}: {recipe.source}: column: {must_be_one_of(features, column)}")

    names, classes = _classes(found[splits[0]], recipe)
    is_image = isinstance(features[recipe.inputs], ImageFeature)
    decoded = {}
    for split in splits:
        table = found[split]
        if is_image:
            table = table.cast_column(recipe.inputs, ImageFeature(decode=False))
            inputs = _decode_images(table, split, recipe.inputs, recipe.shape, console)
        else:
            inputs = _vectors(table, split, recipe.inputs)
        decoded[split] = Split(inputs, _labels(table, split, recipe.labels, names))
    low, high = (0.0, 255.0) if is_image else (None, None)
    return Source(decoded, classes, "image" if is_image else "vector", low, high)


def _classes(table: Any, recipe: DataRecipe) -> tuple[dict[Any, int], list[str]]:
    """Map each value of the label column to its class index, and return the names of the classes in that order."""
    from datasets import ClassLabel

    feature = table.features[recipe.labels]
    if isinstance(feature, ClassLabel):
        return {index: index for index in range(feature.num_classes)}, list(feature.names)
    values = sorted(table.unique(recipe.labels))
    return {value: index for index, value in enumerate(values)}, [str(value) for value in values]


def _labels(table: Any, split: str, column: str, indices: dict[Any, int]) -> Tensor:
    values = table[column][:]
    unknown = sorted({str(value) for value in values if value not in indices})
    if unknown:
        raise DataError(
            f"data.labels: split {split!r} has labels that the training split does not have: {', '.join(unknown[:5])}"
        )
    return torch.tensor([indices[value] for value in values], dtype=torch.int64)


def _vectors(table: Any, split: str, column: str) -> Tensor:
    try:
        vectors = torch.from_numpy(np.asarray(table[column][:], dtype=np.float32))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"data.inputs: column {column!r} of split {split!r} must hold images, or vectors of one length: {error}"
        ) from error
    if vectors.dim() != 2 or not bool(vectors.isfinite().all()):
        raise DataError(f"data.inputs: column {column!r} of split {split!r} must hold vectors of finite numbers")
    return vectors


def _decode_images(table: Any, split: str, column: str, shape: tuple[int, int, int] | None, console: Console) -> Tensor:
    """Decode a column of encoded images into uint8 ``[n, channels, height, width]``."""
    rows = table.num_rows
    first = _open(next(_encoded(table, column)), split, 0)
    channels, height, width = shape or (1 if first.mode in ("1", "L", "LA") else 3, first.height, first.width)
    decoded = np.empty((rows, channels, height, width), np.uint8)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"decoding {split}", total=rows)
        for row, encoded in enumerate(_encoded(table, column)):
            image = _open(encoded, split, row)
            if image.size != (width, height) and shape is None:
                raise DataError(
                    f"data.inputs: image {row} of split {split!r} is {image.height}x{image.width} and the first one is "
                    f"{height}x{width}: set data.shape, to which all images are resized"
                )
            decoded[row] = to_pixels(image, (channels, height, width))
            if row % 500 == 499:
                progress.update(task, completed=row + 1)
    return torch.from_numpy(decoded)


def _encoded(table: Any, column: str) -> Iterator[dict[str, Any]]:
    for batch in table.iter(500):
        yield from batch[column]


def _open(encoded: dict[str, Any], split: str, row: int) -> Image.Image:
    """Decode one file exactly as the server does, so that training and serving see the same pixels."""
    content, path = encoded["bytes"], encoded["path"]
    try:
        with Image.open(io.BytesIO(content) if content is not None else path) as image:
            return upright(image)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"data.inputs: image {row} of split {split!r} cannot be read: {error}") from error
