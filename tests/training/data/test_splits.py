"""Data: every source gives the same three parts, which are disjoint."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from training.data import load_parts, measure_normalisation
from training.errors import DataError
from training.recipe import DataRecipe

Picture = Callable[[int, int], Image.Image]


def as_set(inputs: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


def test_digits_are_split_without_overlap_or_loss(console: Console) -> None:
    data = load_parts(DataRecipe(source="sklearn/digits", test=0.2, validation=0.1), console)
    parts = [data.train, data.validation, data.test]
    assert sum(len(part.labels) for part in parts) == 1797
    sets = [as_set(part.inputs) for part in parts]
    assert sets[0] | sets[1] | sets[2] == as_set(torch.from_numpy(load_digits().images).to(torch.uint8))
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert data.input.model_dump() == {"shape": (1, 8, 8), "kind": "image", "dtype": "float32", "low": 0.0, "high": 16.0}
    assert data.classes == list("0123456789")


def test_parts_have_the_classes_in_the_same_proportion(console: Console) -> None:
    data = load_parts(DataRecipe(source="sklearn/digits", test=0.2, validation=0.1), console)
    for part in (data.validation, data.test):
        share = torch.bincount(part.labels, minlength=10) / torch.bincount(data.train.labels, minlength=10)
        assert share.max() / share.min() < 1.2


def test_the_test_part_does_not_depend_on_the_fraction_for_validation(console: Console) -> None:
    one = load_parts(DataRecipe(source="sklearn/digits", test=0.2, validation=0.1), console)
    two = load_parts(DataRecipe(source="sklearn/digits", test=0.2, validation=0.3), console)
    assert torch.equal(one.test.inputs, two.test.inputs)


def test_a_folder_of_images_with_one_subfolder_per_class(tmp_path: Path, console: Console, picture: Picture) -> None:
    for c, name in enumerate(["left", "right"]):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(10):
            picture(c, i).save(folder / f"{i}.png")
    data = load_parts(DataRecipe(source=str(tmp_path / "pictures"), test=0.2, validation=0.2), console)
    assert data.classes == ["left", "right"]
    assert data.input.shape == (1, 12, 10)
    assert (len(data.train.labels), len(data.validation.labels), len(data.test.labels)) == (12, 4, 4)
    for part in (data.train, data.validation, data.test):
        brightest = part.inputs.float().mean((1, 2)).argmax(1)
        assert torch.equal(brightest >= 4, part.labels == 1)


def test_a_folder_of_parquet_files_as_the_hub_serves_them(tmp_path: Path, console: Console, picture: Picture) -> None:
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["left", "right"])})
    for split, rows in (("train", 20), ("test", 6)):
        table = datasets.Dataset.from_dict(
            {"img": [picture(i % 2, i) for i in range(rows)], "kind": [i % 2 for i in range(rows)]}, features=features
        )
        (tmp_path / "parquet").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
    data = load_parts(DataRecipe(source=str(tmp_path / "parquet"), inputs="img", labels="kind", validation=0.2), console)
    assert data.classes == ["left", "right"]
    assert torch.equal(data.test.labels, torch.tensor([0, 1, 0, 1, 0, 1]))
    expected = np.stack([np.asarray(picture(i % 2, i)) for i in range(6)])
    assert np.array_equal(data.test.inputs[:, 0].numpy(), expected)


def test_vectors_come_from_a_column_of_number_lists_with_labels_that_are_words(tmp_path: Path, console: Console) -> None:
    (tmp_path / "vectors").mkdir()
    vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    table = datasets.Dataset.from_dict({"v": vectors.tolist(), "what": ["pear", "apple"] * 10})
    table.to_parquet(tmp_path / "vectors" / "train.parquet")
    data = load_parts(DataRecipe(source=str(tmp_path / "vectors"), inputs="v", labels="what", test=0.2, validation=0.2), console)
    assert data.classes == ["apple", "pear"]
    assert data.input.kind == "vector"
    rows = {tuple(row): "pear" if i % 2 == 0 else "apple" for i, row in enumerate(vectors.tolist())}
    for row, label in zip(data.train.inputs.tolist(), data.train.labels.tolist(), strict=True):
        assert rows[tuple(row)] == data.classes[label]


def test_colour_images_of_several_sizes_need_a_shape_and_are_resized_to_it(tmp_path: Path, console: Console) -> None:
    for c, name in enumerate(["red", "blue"]):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (10 + i, 9), (200, 0, 0) if c == 0 else (0, 0, 200)).save(folder / f"{i}.png")
    recipe = DataRecipe(source=str(tmp_path / "pictures"), test=0.34, validation=0.25)
    with pytest.raises(DataError, match=r"image \d+ of split 'train' is 9x1\d and the first one is 9x1\d: set data.shape"):
        load_parts(recipe, console)
    data = load_parts(recipe.model_copy(update={"shape": (3, 8, 8)}), console)
    assert data.input.shape == (3, 8, 8)
    assert set(data.train.inputs[:, 0].unique().tolist()) == {0, 200}
    assert torch.equal(data.train.inputs[:, 2, 0, 0] == 200, data.train.labels == data.classes.index("blue"))


def test_sixteen_bit_images_are_scaled_and_not_cut_off(tmp_path: Path, console: Console) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)).save(folder / f"{i}.png")
    data = load_parts(DataRecipe(source=str(tmp_path / "pictures"), test=0.4, validation=0.4), console)
    assert data.input.shape == (1, 4, 4)
    assert data.train.inputs.unique().tolist() == [100]


def test_a_broken_image_is_named(tmp_path: Path, console: Console, picture: Picture) -> None:
    for c, name in enumerate(["left", "right"]):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(4):
            picture(c, i).save(folder / f"{i}.png")
    broken = tmp_path / "pictures" / "right" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"image 6 of split 'train' cannot be read"):
        load_parts(DataRecipe(source=str(tmp_path / "pictures"), test=0.3), console)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (DataRecipe(source="sklearn/digits"), r"has only the split train, no 'test'"),
        (DataRecipe(source="./nowhere"), r"must be a folder \(got './nowhere', which is none\)"),
        (DataRecipe(source="sklearn/digits", test="train"), r"must be different splits"),
        (DataRecipe(source="sklearn/digits", test=0.001), r"data.test: cannot hold out 0.001 of 1797 inputs"),
    ],
)
def test_what_a_source_does_not_have_is_an_error(recipe: DataRecipe, message: str, console: Console) -> None:
    with pytest.raises(DataError, match=message):
        load_parts(recipe, console)


def test_a_missing_column_or_split_is_an_error_that_lists_those_that_exist(tmp_path: Path, console: Console) -> None:
    (tmp_path / "p").mkdir()
    datasets.Dataset.from_dict({"v": [[1.0]] * 4, "y": [0, 1] * 2}).to_parquet(tmp_path / "p" / "train.parquet")
    with pytest.raises(DataError, match=r"data.inputs: .*: column: must be one of v, y \(got 'image'\)"):
        load_parts(DataRecipe(source=str(tmp_path / "p"), test=0.5, validation=0.5), console)
    with pytest.raises(DataError, match=r"split: must be one of train \(got 'test'\)"):
        load_parts(DataRecipe(source=str(tmp_path / "p"), inputs="v", labels="y"), console)


def test_a_broken_parquet_file_is_an_error_of_the_source(tmp_path: Path, console: Console) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "train.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(DataError, match=r"data.source: must be a folder of parquet files, or .*'\): "):
        load_parts(DataRecipe(source=str(tmp_path / "p"), test=0.5), console)


@pytest.mark.slow
@pytest.mark.long
def test_mnist_is_whole_and_in_order(shared: Path, console: Console) -> None:
    folder = shared / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip("no MNIST among the reference data")
    data = load_parts(DataRecipe(source=str(folder), validation=0.05), console)
    assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [57_000, 3_000, 10_000]
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert measure_normalisation(data.train.inputs)[0][0] / 255 == pytest.approx(0.1307, abs=5e-4)


def test_normalisation_is_measured_per_channel_and_safe_for_constants() -> None:
    inputs = torch.randn(5000, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 7 + 1000
    inputs[:, 1] = 5.0
    mean, std = measure_normalisation(inputs)
    expected = inputs.double().transpose(0, 1).flatten(1)
    assert mean == pytest.approx(expected.mean(1).tolist(), rel=1e-6)
    assert std[0] == pytest.approx(float(expected[0].std(correction=0)), rel=1e-4)
    assert std[1] == 1.0
