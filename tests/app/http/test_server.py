"""The end of a server: SIGTERM turns it not ready first, Ctrl-C does not; then no more requests, then the end, with status 0."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.app.running import ENDLESS, RunningServer, rows, running_server, wait_until

PATH = "/models/slow/predict"


def in_flight_at(number: signal.Signals, server: RunningServer, body: dict[str, object], seconds: float) -> httpx.Response:
    """The answer, within some seconds, to a request that is in flight when the server gets a signal."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.predict, body, PATH)
        wait_until(lambda: rows(server, "active") == 1, 10, "it is in flight")
        server.process.send_signal(number)
        return answer.result(timeout=seconds)


def test_sigterm_turns_the_server_not_ready_and_a_second_one_ends_it_when_what_is_in_flight_is_answered(
    store: Path, tmp_path: Path
) -> None:
    """Also what is in flight when a pause ends is: ``tests/app/supervisor/test_http_workers.py``."""
    with running_server(store, tmp_path / "log", drain_seconds=60, max_iterations_limit=1_000_000) as server:
        server.wait_until_ready()
        engine = server.engine_pid()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/v2/health/ready").status_code == 503, 10, "it is not ready")
        assert "shutting down" in httpx.get(f"{server.url}/v2/health/ready").json()["error"]
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        assert httpx.post(f"{server.url}{PATH}", json=ENDLESS | {"max_iterations": 3}).status_code == 200
        answer = in_flight_at(signal.SIGTERM, server, ENDLESS | {"max_iterations": 10_000}, seconds=60)
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["iterations"] == 10_000
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.TransportError):
            server.client.get("/v2/health/live")
        assert not Path(f"/proc/{engine}").exists()
        assert "Traceback" not in server.log.read_text()


def test_what_is_in_flight_at_ctrl_c_is_answered(store: Path, tmp_path: Path) -> None:
    with running_server(store, tmp_path / "log", max_iterations_limit=1_000_000) as server:
        server.wait_until_ready()
        answer = in_flight_at(signal.SIGINT, server, ENDLESS | {"max_iterations": 10_000}, seconds=60)
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["iterations"] == 10_000
        assert server.process.wait(30) == 0


def test_ctrl_c_ends_a_server_without_a_pause_and_what_takes_too_long_is_answered_503(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortened = "from app.supervisor import supervisor\nsupervisor.SHUTDOWN_SECONDS = 1\n"
    (tmp_path / "sitecustomize.py").write_text(shortened)  # of every process
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])]))
    settings = {"drain_seconds": 60, "max_iterations_limit": 1_000_000}
    with running_server(store, tmp_path / "log", **settings) as server:
        server.wait_until_ready()
        answer = in_flight_at(signal.SIGINT, server, ENDLESS, seconds=30)
        assert answer.status_code == 503
        assert "shutting down" in answer.json()["error"]
        assert server.process.wait(timeout=10) == 0
        assert "Traceback" not in server.log.read_text()
