"""What several rooms' tests share."""

import os
import subprocess
import sys
from pathlib import Path

# The workers of pytest-xdist, and what they start, share the cores; threads that wait for each other would only cost time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large reference data beside the checkout; tests that want it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no folder of reference data beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the digits model, trained by the command that `make run` runs, once for all workers. Read it only."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has a folder of its own in it
    store = base / "digits" / "store"
    with FileLock(base / "digits.lock"):  # the others wait here for the first
        if not store.is_dir():
            subprocess.run(
                [sys.executable, "-m", "training", "train", "digits"],
                env={**os.environ, "JFB_MODEL_STORE": str(store), "JFB_RUNS": str(base / "digits" / "runs")},
                check=True,
                capture_output=True,
                timeout=300,
            )
    return store
