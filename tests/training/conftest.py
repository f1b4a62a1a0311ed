"""Small data sets and recipes that train in seconds."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from training.recipe import Recipe, load_recipe


@pytest.fixture(autouse=True)
def _private_dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _private_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JFB_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.fixture
def quick() -> Recipe:
    """The digits recipe, with a smaller network and one epoch."""
    return load_recipe("digits").changed(
        {"optimisation.epochs": 1, "network.arguments": {"channels": [8], "pool": [2]}, "search.max_iterations": 10}
    )


@pytest.fixture
def picture() -> Callable[[int, int], Image.Image]:
    """Makes image i of class c: grey noise with a bright stripe at a position that depends on the class."""

    def make(c: int, i: int) -> Image.Image:
        pixels = np.random.default_rng([c, i]).integers(0, 60, (12, 10), dtype=np.uint8)
        pixels[:, 4 * c : 4 * c + 4] += 180
        return Image.fromarray(pixels)

    return make
