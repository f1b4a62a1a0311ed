"""What several rooms' tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large reference data beside the checkout; tests that want it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no folder of reference data beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the digits model, trained by the command that `make run` runs."""
    store = tmp_path_factory.mktemp("store")
    subprocess.run(
        [sys.executable, "-m", "training", "train", "digits"],
        env={**os.environ, "JFB_MODEL_STORE": str(store), "JFB_RUNS": str(store.parent / "runs")},
        check=True,
        capture_output=True,
        timeout=300,
    )
    return store
