"""A running server: the real processes and a real socket."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import free_port


@dataclass
class RunningServer:
    """``python -m app`` in a process of its own, with an HTTP client."""

    process: "subprocess.Popen[bytes]"
    url: str
    client: httpx.Client
    log: Path

    def predict(self, content: object, path: str = "/predict") -> httpx.Response:
        """POST JSON."""
        return self.client.post(path, json=content)

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Return when ``/v2/health/ready`` says so."""
        wait_until(lambda: self.client.get("/v2/health/ready").status_code == 200, seconds, "the server is ready")

    def pids(self, module: str) -> set[int]:
        """The ids of the child processes that run a module."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(child) for child in children if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")}

    def engine_pid(self) -> int:
        """The engine's process id."""
        (pid,) = self.pids("app.engine")
        return pid

    def worker_pid(self) -> int:
        """The HTTP worker's process id."""
        (pid,) = self.pids("app.cli.http_worker")
        return pid

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all samples of a metric that have these labels."""
        (found,) = self.metrics(name, **labels)
        return found

    def metrics(self, *names: str, **labels: str) -> tuple[float, ...]:
        """The same of several metrics at one time."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = [one for family in families for one in family.samples if labels.items() <= one.labels.items()]
        return tuple(sum(one.value for one in samples if one.name == name) for name in names)


@contextmanager
def running_server(store: Path, log: Path, **settings: object) -> Iterator[RunningServer]:
    """Start a server on a free port, wait until it answers at all, and end it at the end."""
    port = free_port()
    settings = {
        "model_store": store,
        "port": port,
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "drain_seconds": 0,
    } | settings
    environment = {**os.environ, **{f"JFB_{name.upper()}": str(value) for name, value in settings.items()}}
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "app"], env=environment, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=60) as client:
            wait_until(lambda: _answers(client, process, log), 30, "the server answers")
            yield RunningServer(process, url, client, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.05)


def _answers(client: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, f"the server ended: {log.read_text()}"
    try:
        return client.get("/v2/health/live").status_code == 200
    except httpx.TransportError:
        return False


ENDLESS = {"inputs": [[0, 1, 2, 3]], "tolerance": 1e-30, "max_iterations": 1_000_000}
"""A minute of work for the slow model."""


@contextmanager
def connected(server: RunningServer) -> Iterator[socket.socket]:
    """A bare connection to a server."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=20) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


@contextmanager
def connection(server: RunningServer, content: object, path: str = "/models/slow/predict") -> Iterator[socket.socket]:
    """Send a request over a bare socket and do not wait for the answer; closing the socket is leaving."""
    body = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with connected(server) as sock:
        sock.sendall(head.encode() + body)
        yield sock


def rows(server: RunningServer, kind: str) -> float:
    return server.metric(f"jfb_engine_{kind}_rows", model="slow")


def rejected(answer: httpx.Response, status: int, *parts: str) -> None:
    """Check the form of an error, its status and what it says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    for part in parts:
        assert part in answer.json()["error"]
