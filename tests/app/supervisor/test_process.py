"""The server as a process: how it starts and stops, and what it does for clients that leave or come too many."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.app.running import ENDLESS, RunningServer, connection, rows, running_server, wait_until


def test_a_client_that_disconnects_has_its_rows_dropped(strict_server: RunningServer) -> None:
    with connection(strict_server, ENDLESS | {"inputs": [[0, 1, 2, 3]] * 4}):
        wait_until(lambda: (rows(strict_server, "active"), rows(strict_server, "waiting")) == (2, 2), 10, "its rows are in")
    wait_until(lambda: (rows(strict_server, "active"), rows(strict_server, "waiting")) == (0, 0), 10, "its rows are gone")
    assert strict_server.predict({"inputs": [[0, 0, 0, 0]], "max_iterations": 2}, "/models/slow/predict").status_code == 200


def test_half_a_request_delays_no_other_request(strict_server: RunningServer) -> None:
    url = httpx.URL(strict_server.url)
    with socket.create_connection((url.host, url.port or 80)) as sock:
        sock.sendall(
            b"POST /models/slow/predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        time.sleep(0.1)
        assert strict_server.client.get("/v2/health/ready").status_code == 200
    assert strict_server.client.get("/v2/health/ready").status_code == 200
    assert "unhandled exception" not in strict_server.log.read_text()


def test_a_full_queue_is_429_with_the_seconds_to_wait_and_what_fits_is_still_taken(strict_server: RunningServer) -> None:
    with connection(strict_server, ENDLESS | {"inputs": [[0, 1, 2, 3]] * 4}):
        wait_until(lambda: rows(strict_server, "waiting") == 2, 10, "two rows wait")
        refused = strict_server.predict(ENDLESS | {"inputs": [[0, 1, 2, 3]] * 3}, "/models/slow/predict")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert re.match(r"queue: 2 of at most 4 rows are waiting", refused.json()["error"])
        with connection(strict_server, ENDLESS | {"inputs": [[0, 1, 2, 3]] * 2}):
            wait_until(lambda: rows(strict_server, "waiting") == 4, 10, "two more rows wait")
        other = strict_server.predict({"inputs": [[0, 0]]}, "/models/wild/predict")
        assert other.status_code == 200
    wait_until(lambda: rows(strict_server, "active") == 0, 10, "its rows are gone")


def test_while_the_queue_is_full_requests_are_rejected_before_their_inputs_are_read(strict_server: RunningServer) -> None:
    url = httpx.URL(strict_server.url)
    head = b"POST /models/slow/predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n"

    def refused_by_its_head() -> bool:
        assert strict_server.predict(ENDLESS, "/models/slow/predict").status_code == 429
        with socket.create_connection((url.host, url.port or 80), timeout=0.5) as sock:
            sock.sendall(head)
            try:
                return sock.recv(4096).startswith(b"HTTP/1.1 429 ")
            except TimeoutError:  # what the engine said was too long ago
                return False

    four, two = ENDLESS | {"inputs": [[0, 1, 2, 3]] * 4}, ENDLESS | {"inputs": [[0, 1, 2, 3]] * 2}
    with connection(strict_server, four):
        wait_until(lambda: rows(strict_server, "waiting") == 2, 10, "two rows wait")
        with connection(strict_server, two):
            wait_until(lambda: rows(strict_server, "waiting") == 4, 10, "the queue is full")
            wait_until(refused_by_its_head, 30, "a request is refused by its head")
    wait_until(lambda: rows(strict_server, "active") == 0, 10, "its rows are gone")
    wait_until(
        lambda: strict_server.predict({"inputs": [[0, 0, 0, 0]], "max_iterations": 2}, "/models/slow/predict").is_success,
        5,
        "there is room",
    )


def test_torch_stays_out_of_the_http_process(server: RunningServer) -> None:
    def maps(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    assert "libtorch" in maps(server.engine_pid())
    assert "libtorch" not in maps(server.worker_pid())
    assert "libtorch" not in maps(server.process.pid)


def test_a_server_without_models_is_live_and_says_why_it_is_not_ready(store: Path, tmp_path: Path) -> None:
    own = tmp_path / "store"
    own.mkdir()
    with running_server(own, tmp_path / "log") as server:
        starting = server.client.get("/v2/health/ready")
        early = server.predict({"inputs": [[0, 1, 2, 3]]}, "/models/slow/predict")
        for answer in (starting, early):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"].startswith("engine: ")
        assert server.client.get("/openapi.json").status_code == 200

        wait_until(lambda: "model_store: " in server.client.get("/v2/health/ready").text, 60, "the engine has scanned the store")
        assert server.client.get("/v2/health/ready").status_code == 503
        assert server.client.get("/v2/health/live").status_code == 200
        assert server.predict({}).status_code == 400
        assert server.client.get("/models").json() == {"default": None, "models": [], "refused": {}}

        shutil.copytree(store / "slow", own / "slow")
        server.process.send_signal(signal.SIGHUP)
        server.wait_until_ready()
        assert server.predict({"inputs": [[0, 1, 2, 3]]}, "/models/slow/predict").status_code == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("running", ["server", "strict_server"])
def test_the_line_that_the_server_prints_works_when_pasted(running: str, request: pytest.FixtureRequest) -> None:
    server: RunningServer = request.getfixturevalue(running)
    (line,) = [line for line in server.log.read_text().splitlines() if line.startswith("Try: ")]
    ended = subprocess.run(f"{line.removeprefix('Try: ')} --silent", shell=True, capture_output=True, check=True)
    assert json.loads(ended.stdout)["predictions"][0]["status"] == "converged"
