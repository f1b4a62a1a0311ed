"""The served store and the servers, each started once a session."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.app.running import RunningServer, running_server
from tests.app.store import make_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the models digits (versions 1 and 2; 3 is broken), slow and wild."""
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with digits as its default model and the usual limits, ready."""
    with running_server(store, tmp_path_factory.mktemp("server") / "log", default_model="digits", slots=32) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def strict_server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with no default model and narrow limits, ready."""
    limits = {
        "slots": 2,
        "max_waiting_rows": 4,
        "max_rows_per_request": 4,
        "max_body_bytes": 10_000,
        "max_iterations_limit": 1_000_000,
    }
    with running_server(store, tmp_path_factory.mktemp("strict") / "log", **limits) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def keyed_server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with digits as its default model, the API key "secret" and its metrics on a port of their own, ready."""
    settings = {"default_model": "digits", "api_keys": "secret", "metrics_port": 0}
    with running_server(store, tmp_path_factory.mktemp("keyed") / "log", **settings) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> httpx.Client:
    """A client of ``server``."""
    return server.client


@pytest.fixture(scope="session")
def digits() -> NDArray[np.float64]:
    """Eight inputs of the digits model, shape [8, 1, 8, 8]."""
    return np.random.default_rng(0).integers(0, 17, size=(8, 1, 8, 8)).astype(np.float64)
