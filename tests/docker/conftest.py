"""What the servers of these tests serve."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.app.store import make_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with digits, slow and wild."""
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def digits() -> NDArray[np.float64]:
    """Eight inputs of the digits model, shape [8, 1, 8, 8]."""
    return np.random.default_rng(0).integers(0, 17, size=(8, 1, 8, 8)).astype(np.float64)
