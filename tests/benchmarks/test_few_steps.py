"""A few steps of the CIFAR-10 recipes on the real images. Their accuracy needs a GPU; this checks that they train."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from benchmarks.few_steps import cut_short, find_problems
from training.data import Data, load_data
from training.recipe import load_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cifar(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The first 800 and 100 images; decoding all of them takes long."""
    folder = tmp_path_factory.mktemp("cifar10")
    for split, rows in (("train", 800), ("test", 100)):
        name = f"{split}-00000-of-00001.parquet"
        pq.write_table(pq.read_table(shared / "data" / "cifar10" / name).slice(0, rows), folder / name)
    recipe = load_recipe("cifar10_small").changed({"data.source": str(folder)})
    return load_data(recipe, Console(quiet=True))


@pytest.mark.parametrize(
    ("name", "steps", "batch_size"), [("cifar10_small", 21, 16), pytest.param("cifar10", 9, 6, marks=pytest.mark.long)]
)
def test_the_loss_falls_the_map_contracts_and_the_iterations_are_few(name: str, steps: int, batch_size: int, cifar: Data) -> None:
    trained = cut_short(load_recipe(name), cifar, steps, batch_size, Console(quiet=True))
    assert find_problems(trained) == []
    assert trained.contraction_bound is not None
    assert trained.contraction_factor <= trained.contraction_bound < 1


def test_a_rising_loss_and_a_map_that_may_not_contract_are_reported(cifar: Data) -> None:
    recipe = load_recipe("cifar10_small").changed({"network.arguments": {"channels": [4], "pool": [8]}})
    trained = cut_short(recipe, cifar, 3, 4, Console(quiet=True))
    first, *others = trained.history
    rising = replace(trained, history=[first, *(replace(epoch, train_loss=first.train_loss + 1) for epoch in others)])
    assert [problem for problem in find_problems(rising) if "epoch 2: the loss did not fall" in problem]
    loose = replace(trained, history=[replace(first, contraction_bound=1.2, train_iterations=29.0)])
    assert len(find_problems(loose)) == 2
