"""Several HTTP processes before one engine: for clients and operators they are one server."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.running import ENDLESS, RunningServer, connection, rows, running_server, wait_until

PATH = "/models/slow/predict"
ROW = {"inputs": [[0, 1, 2, 3]], "max_iterations": 7}
MANY = 24
"""New connections: that the system gives all of them to the same one of two processes does not happen in practice."""


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = {"http_workers": 2, "slots": 64, "max_iterations_limit": 1_000_000}
    with running_server(store, tmp_path_factory.mktemp("workers") / "log", **settings) as running:
        wait_until(lambda: everyone(running, lambda answer: answer.status_code == 200), 60, "every process is ready")
        yield running


def anew(server: RunningServer, method: str, path: str, **more: object) -> httpx.Response:
    """Send a request over a new connection."""
    headers = {"connection": "close"} | more.pop("headers", {})  # type: ignore[operator]
    return server.client.request(method, path, headers=headers, **more)  # type: ignore[arg-type]


def workers(server: RunningServer) -> set[int]:
    """The process ids of the HTTP workers."""
    return server.pids("app.cli.http_worker")


def everyone(server: RunningServer, condition: Callable[[httpx.Response], bool], path: str = "/v2/health/ready") -> bool:
    """Whether a condition holds for the answers over many connections."""
    return all(condition(anew(server, "GET", path)) for _ in range(MANY))


def test_the_default_model_of_every_worker_is_the_one_that_was_published_last(server: RunningServer) -> None:
    assert everyone(server, lambda answer: answer.json()["default"] == "wild", "/models")
    assert anew(server, "POST", "/predict", json={"inputs": [[0, 0]]}).json()["model"] == "wild"


def test_requests_are_counted_over_all_processes_also_those_of_one_that_has_ended(server: RunningServer) -> None:
    def seen() -> set[tuple[float, ...]]:
        found = set()
        for _ in range(8):
            anew(server, "GET", "/v2/health/live")  # closes the connection, and the next one may be to another process
            names = ("jfb_http_requests_total", "jfb_row_iterations_count", "jfb_row_iterations_sum")
            found.add(server.metrics(*names, model="slow"))
        return found

    wait_until(lambda: len(seen()) == 1, 10, "each worker shows what the others have counted")
    before = seen()
    for _ in range(MANY):
        assert anew(server, "POST", PATH, json=ROW).json()["predictions"][0]["iterations"] == 7
    expected = {tuple(count + more for count, more in zip(*before, (MANY, MANY, 7 * MANY), strict=True))}
    wait_until(lambda: seen() == expected, 10, "each worker shows what the others have counted")
    ended = workers(server).pop()
    os.kill(ended, signal.SIGKILL)
    wait_until(lambda: ended not in workers(server) and len(workers(server)) == 2, 30, "another process takes its place")
    assert seen() == expected


def test_statistics_count_what_all_processes_have_answered(server: RunningServer) -> None:
    def counts(statistics: dict[str, Any]) -> list[int]:
        stats = statistics["inference_stats"]
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return [statistics["inference_count"], *(stats[name]["count"] for name in names)]

    def statistics() -> dict[str, Any]:
        (found,) = anew(server, "GET", "/v2/models/slow/versions/1/stats").json()["model_stats"]
        answer: dict[str, Any] = found
        return answer

    tensor = {"name": "inputs", "datatype": "FP32", "shape": [2, 4], "data": [0, 1, 2, 3] * 2}
    content = {"inputs": [tensor], "parameters": {"max_iterations": 7}}
    before = counts(statistics())
    for _ in range(MANY):
        assert anew(server, "POST", "/v2/models/slow/infer", json=content).status_code == 200
    assert anew(server, "POST", PATH, json=ROW).status_code == 200
    assert anew(server, "POST", "/v2/models/slow/infer", json={"inputs": []}).status_code == 400
    added = [2 * MANY + 1, MANY + 1, 1, *[MANY + 1] * 4]
    expected = [count + more for count, more in zip(before, added, strict=True)]
    wait_until(lambda: counts(statistics()) == expected, 10, "all requests are counted")
    assert all(counts(statistics()) == expected for _ in range(8))
    found = statistics()
    assert (found["name"], found["version"], found["batch_stats"]) == ("slow", "1", [])
    assert found["execution_count"] >= 7
    stats = found["inference_stats"]
    phases = ("queue", "compute_input", "compute_infer", "compute_output")
    assert stats["success"]["ns"] == sum(stats[name]["ns"] for name in phases)
    assert all(stats[name]["ns"] > 0 for name in phases)


def test_a_process_that_dies_costs_its_own_clients_their_answers_and_its_rows_leave_the_engine(server: RunningServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connection(server, ENDLESS)) for _ in range(MANY)]
        wait_until(lambda: rows(server, "active") == MANY, 60, "all rows are in")
        before = workers(server)
        os.kill(min(before), signal.SIGKILL)

        def alive() -> int:
            found = 0
            for client in clients:
                client.setblocking(False)
                try:
                    client.recv(1)
                except BlockingIOError:
                    found += 1
                except ConnectionResetError:
                    pass
            return found

        wait_until(lambda: alive() < MANY, 60, "its clients are left alone")
        left = alive()
        assert left > 0
        wait_until(lambda: rows(server, "active") == left, 60, "the rows of its clients are gone")
        wait_until(lambda: len(workers(server) - before) == 1, 10, "another process takes its place")
        assert everyone(server, lambda answer: answer.status_code == 200)
    wait_until(lambda: rows(server, "active") == 0, 10, "no request is left")


def test_an_engine_that_dies_is_missed_and_found_again_by_every_process(server: RunningServer) -> None:
    with ThreadPoolExecutor(MANY) as pool:
        waiting = [pool.submit(anew, server, "POST", PATH, json=ENDLESS) for _ in range(MANY)]
        wait_until(lambda: rows(server, "active") == MANY, 60, "all rows are in")
        os.kill(server.engine_pid(), signal.SIGKILL)
        assert {answer.result(10).status_code for answer in waiting} == {503}
    wait_until(lambda: everyone(server, lambda answer: answer.status_code == 200), 60, "every process has the new engine")
    assert everyone(server, lambda answer: '\njfb_engine_restarts_total{engine="0"} 1.0\n' in answer.text, "/metrics")


def test_what_one_process_loads_and_unloads_is_so_for_all_at_once(server: RunningServer) -> None:
    assert anew(server, "POST", "/v2/repository/models/wild/unload").status_code == 200
    assert everyone(server, lambda answer: answer.status_code == 404, "/models/wild")
    assert anew(server, "POST", "/v2/repository/models/wild/load").status_code == 200
    assert everyone(server, lambda answer: answer.status_code == 200, "/models/wild")


def test_processes_do_not_outlive_the_one_that_keeps_them(server: RunningServer) -> None:
    """The last test with this server."""
    others = [server.engine_pid(), *workers(server)]
    server.process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in others), 30, "all have ended")
    server.process.wait()


def test_signals_reach_every_process_and_metrics_have_one_port(store: Path, tmp_path: Path) -> None:
    own = tmp_path / "store"
    shutil.copytree(store / "slow", own / "slow")
    keys = tmp_path / "keys"
    keys.write_text("old")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        metrics_port = probe.getsockname()[1]
    settings = {"http_workers": 2, "api_keys_file": keys, "metrics_port": metrics_port, "max_iterations_limit": 1_000_000}
    with running_server(own, tmp_path / "log", drain_seconds=1, **settings) as server:
        server.wait_until_ready()

        def status(key: str, path: str = "/models/slow") -> set[int]:
            headers = {"authorization": f"Bearer {key}"}
            return {anew(server, "GET", path, headers=headers).status_code for _ in range(MANY)}

        wait_until(lambda: status("old") == {200}, 30, "every process is ready")
        assert status("new") == {401}
        keys.write_text("new")
        shutil.copytree(store / "slow" / "1", own / "slow" / "2")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: (status("old"), status("new")) == ({401}, {200}), 10, "every process has read the keys")
        wait_until(lambda: status("new", "/v2/models/slow/versions/2") == {200}, 10, "every process has the new version")

        assert status("new", "/metrics") == {404}
        counted = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
        assert 'jfb_http_requests_total{method="GET",model="",route="/metrics"' not in counted
        assert 'route="/models/{name}",status="200"' in counted
        assert httpx.get(f"http://127.0.0.1:{metrics_port}/v2/health/ready").status_code == 200

        headers, engine = {"authorization": "Bearer new"}, server.engine_pid()
        with ThreadPoolExecutor(4) as pool:
            body = ENDLESS | {"max_iterations": 10_000}
            waiting = [pool.submit(anew, server, "POST", PATH, json=body, headers=headers) for _ in range(4)]

            def active() -> bool:
                return (
                    'jfb_engine_active_rows{engine="0",model="slow",version="2"} 4.0'
                    in httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
                )

            wait_until(active, 10, "they are in flight")
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: everyone(server, lambda answer: answer.status_code == 503), 10, "no process is ready")
            iterations = [answer.result(60).json()["predictions"][0]["iterations"] for answer in waiting]
        assert iterations == [10_000] * 4
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.TransportError):
            server.client.get("/v2/health/live")
        assert not Path(f"/proc/{engine}").exists()
        assert "Traceback" not in server.log.read_text()


def test_a_port_in_use_is_status_3_also_where_its_user_shares_it(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        variables = {"JFB_MODEL_STORE": str(store), "JFB_PORT": str(taken.getsockname()[1]), "JFB_HTTP_WORKERS": "2"}
        command = [sys.executable, "-m", "app"]
        ended = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3
    assert "in use" in ended.stderr
