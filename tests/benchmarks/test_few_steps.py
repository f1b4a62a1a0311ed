"""The CIFAR-10 recipes on a few steps of the real images: what their accuracy needs a GPU for begins here as it should."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from benchmarks.few_steps import cut_short, troubles
from training.data import Data, load_data
from training.recipe import load_recipe


@pytest.fixture(scope="module")
def cifar(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The first of the images, because all of them take long to decode."""
    folder = tmp_path_factory.mktemp("cifar10")
    for split, rows in (("train", 800), ("test", 100)):
        name = f"{split}-00000-of-00001.parquet"
        pq.write_table(pq.read_table(shared / "data" / "cifar10" / name).slice(0, rows), folder / name)
    recipe = load_recipe("cifar10_small").changed({"data.source": str(folder)})
    return load_data(recipe, Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "batch_size"), [("cifar10_small", 21, 16), ("cifar10", 9, 6)])
def test_the_loss_falls_the_map_contracts_and_the_iterations_are_few(name: str, steps: int, batch_size: int, cifar: Data) -> None:
    trained = cut_short(load_recipe(name), cifar, steps, batch_size, Console(quiet=True))
    assert troubles(trained) == []
    assert trained.contraction_bound is not None
    assert trained.contraction_factor <= trained.contraction_bound < 1


def test_a_loss_that_rises_and_a_map_that_may_not_contract_are_told(cifar: Data) -> None:
    recipe = load_recipe("cifar10_small").changed({"network.arguments": {"channels": [4], "pool": [8]}})
    trained = cut_short(recipe, cifar, 3, 4, Console(quiet=True))
    first, *others = trained.history
    rising = replace(trained, history=[first, *(replace(epoch, train_loss=first.train_loss + 1) for epoch in others)])
    assert [trouble for trouble in troubles(rising) if "epoch 2: the loss did not fall" in trouble]
    loose = replace(trained, history=[replace(first, contraction_bound=1.2, train_iterations=29.0)])
    assert len(troubles(loose)) == 2
