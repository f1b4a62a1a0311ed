"""Ray Serve on a real cluster of one machine: two replicas, an engine each, and what clients see when one of them dies."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import jfb
from tests.app.running import wait_until
from tests.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (the extra ray)"),
]

CLUSTER = """
import sys, time
import ray
from ray import serve
from app.ray import Replicas, application

ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", object_store_memory=100_000_000)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(application(Replicas(min_replicas=2, max_replicas=2, cpus=0.5)), route_prefix="/")
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""
"""`serve run` with the ports and the size of a test; in a process of its own, because Ray leaves threads behind."""


@dataclass
class Cluster:
    """A running cluster, and a client of it."""

    client: httpx.Client
    mark: bytes
    """What is in the environment of its processes, and of no other ones."""

    def engines(self) -> list[int]:
        """The process ids of the engines, one a replica."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                if b"app.engine" in (entry / "cmdline").read_bytes() and self.mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return sorted(found)


@pytest.fixture(scope="module")
def cluster(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port = free_port()
    log = tmp_path_factory.mktemp("ray") / "log"
    environment = os.environ | {
        "TEST_CLUSTER": str(log),
        "JFB_MODEL_STORE": str(store),
        "JFB_DEFAULT_MODEL": "digits",
        "JFB_DEVICE": "cpu",
        "JFB_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(port)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert "ready\n" in lines, log.read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Cluster(client, f"TEST_CLUSTER={log}".encode())
        process.stdin.close()
        process.stdout.read()
        process.wait(timeout=60)


def test_replicas_answer_as_the_network_does(cluster: Cluster, store: Path, digits: NDArray[np.float64]) -> None:
    answer = cluster.client.post("/predict", json={"inputs": digits.tolist(), "tolerance": 1e-4, "max_iterations": 200})
    assert answer.status_code == 200, answer.text
    network = jfb.load(store / "digits" / "2").network
    offline = jfb.predict(network, torch.tensor(digits, dtype=torch.float32), tolerance=1e-4, max_iterations=200)
    rows = answer.json()["predictions"]
    np.testing.assert_allclose([row["probabilities"] for row in rows], offline.logits.double().softmax(1), atol=1e-5)
    assert [row["iterations"] for row in rows] == offline.solution.iterations.tolist()


def test_a_replica_that_dies_under_load_costs_only_what_it_had_in_flight_and_is_replaced(
    cluster: Cluster, store: Path, digits: NDArray[np.float64]
) -> None:
    clients = 6
    body = {"inputs": digits.tolist(), "tolerance": 1e-4, "max_iterations": 200}
    right = [row["iterations"] for row in cluster.client.post("/predict", json=body).json()["predictions"]]
    stop = threading.Event()
    answers: list[httpx.Response] = []

    def hammer() -> None:
        with httpx.Client(base_url=cluster.client.base_url, timeout=60) as client:
            while not stop.is_set():
                answers.append(client.post("/predict", json=body))

    before = cluster.engines()
    assert len(before) == 2
    with ThreadPoolExecutor(clients) as pool:
        hammering = [pool.submit(hammer) for _ in range(clients)]
        try:
            wait_until(lambda: len(answers) > 20, 60, "there is load")
            os.kill(parent(before[0]), signal.SIGKILL)
            wait_until(lambda: before[0] not in cluster.engines(), 20, "the engine of the dead replica is gone")
            at_death = len(answers)
            wait_until(lambda: len(answers) > at_death + 20, 60, "the other replica goes on")
            wait_until(lambda: len(cluster.engines()) == 2, 120, "there is another replica")
        finally:
            stop.set()
        for one in hammering:
            one.result()
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses.keys() <= {200, 500, 503}, statuses
    assert statuses.total() - statuses[200] <= clients, statuses
    for answer in answers:
        if answer.status_code == 200:
            assert [row["iterations"] for row in answer.json()["predictions"]] == right
    assert before[1] in cluster.engines()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, on import
def test_arguments_of_serve_run_that_are_wrong_are_named() -> None:
    from app.ray import Replicas

    with pytest.raises(ValueError, match=r"replica\n.*Extra inputs are not permitted"):
        Replicas.model_validate({"replica": "2"})
    with pytest.raises(ValueError, match=r"gpus\n.*greater than or equal to 0"):
        Replicas.model_validate({"gpus": "-1"})


def parent(pid: int) -> int:
    """The process id of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
