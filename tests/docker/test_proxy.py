"""The proxy of the profile replicas: Caddy with our Caddyfile, in front of two servers."""

import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.app.running import RunningServer, running_server, wait_until
from tests.ports import free_port

CADDYFILE = Path(__file__).resolve().parents[2] / "docker" / "Caddyfile"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed"),
]


@pytest.fixture
def replicas(store: Path, tmp_path: Path) -> Iterator[list[RunningServer]]:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running_server(store, tmp_path / f"log-{one}", default_model="digits", drain_seconds=3))
            for one in range(2)
        ]
        for server in servers:
            server.wait_until_ready()
        yield servers


@pytest.fixture
def proxy(replicas: list[RunningServer], tmp_path: Path) -> Iterator[httpx.Client]:
    port = free_port()
    (tmp_path / "Caddyfile").write_text(CADDYFILE.read_text().replace(":8080", f":{port}"))
    environment = os.environ | {
        "REPLICAS": " ".join(httpx.URL(server.url).netloc.decode() for server in replicas),
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    command = ["caddy", "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
    with (tmp_path / "caddy.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until(lambda: _is_ready(client), 30, "the proxy has a ready server")
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_a_replica_stops_without_a_failed_request_and_without_replicas_the_proxy_answers_503(
    proxy: httpx.Client, replicas: list[RunningServer], digits: NDArray[np.float64]
) -> None:
    body = {"inputs": digits.tolist(), "tolerance": 1e-4}
    clients = 4
    stop = threading.Event()
    answers: list[int] = []

    def hammer() -> None:
        with httpx.Client(base_url=proxy.base_url, timeout=60) as client:
            while not stop.is_set():
                answers.append(client.post("/predict", json=body).status_code)

    leaving, staying = replicas
    with ThreadPoolExecutor(clients) as pool:
        hammering = [pool.submit(hammer) for _ in range(clients)]
        try:
            for server in replicas:
                wait_until(lambda server=server: server.metric("jfb_rows_total") > 100, 60, "both get requests")  # type: ignore[misc]
            leaving.process.send_signal(signal.SIGTERM)
            leaving.process.wait(timeout=40)
            enough = len(answers) + 20
            wait_until(lambda: len(answers) > enough, 60, "the other one goes on")
        finally:
            stop.set()
        for one in hammering:
            one.result()
    assert Counter(answers).keys() == {200}

    staying.process.kill()
    staying.process.wait()
    status = proxy.post("/predict", json=body).status_code
    assert status in (502, 503)  # in bounded time


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False
