"""SIGTERM: not ready first, then no more requests, then the end, with status 0."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.app.running import ENDLESS, rows, running_server, wait_until

PATH = "/models/slow/predict"


def test_sigterm_turns_the_server_not_ready_while_it_still_takes_requests(store: Path, tmp_path: Path) -> None:
    with running_server(store, tmp_path / "log", drain_seconds=60) as server:
        server.wait_until_ready()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/v2/health/ready").status_code == 503, 10, "it is not ready")
        assert "shutting down" in httpx.get(f"{server.url}/v2/health/ready").json()["error"]
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        assert httpx.post(f"{server.url}{PATH}", json=ENDLESS | {"max_iterations": 3}).status_code == 200
        server.process.send_signal(signal.SIGTERM)  # ends the draining
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log.read_text()


def test_what_is_in_flight_at_ctrl_c_is_answered_and_every_process_ends(store: Path, tmp_path: Path) -> None:
    """Also that at SIGTERM is, with a pause before: ``tests/app/supervisor/test_http_workers.py``."""
    with running_server(store, tmp_path / "log", max_iterations_limit=1_000_000) as server:
        server.wait_until_ready()
        engine = server.engine_pid()
        with ThreadPoolExecutor(1) as pool:
            in_flight = pool.submit(server.predict, ENDLESS | {"max_iterations": 10_000}, PATH)
            wait_until(lambda: rows(server, "active") == 1, 10, "it is in flight")
            server.process.send_signal(signal.SIGINT)
            answer = in_flight.result(timeout=60)
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["iterations"] == 10_000
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.TransportError):
            server.client.get("/v2/health/live")
        assert not Path(f"/proc/{engine}").exists()
        assert "Traceback" not in server.log.read_text()


def test_a_port_in_use_is_an_error_and_not_status_0(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        variables = {"JFB_MODEL_STORE": str(store), "JFB_PORT": str(taken.getsockname()[1]), "JFB_DEVICE": "cpu"}
        command = [sys.executable, "-m", "app"]
        ended = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3
    assert "Address already in use" in ended.stderr
