"""The compose file on a real Docker engine: build, start, predict, kill, stop. Takes minutes, and needs JFB_TEST_DOCKER=1."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.app.running import wait_until
from tests.ports import free_port

FOLDER = Path(__file__).resolve().parents[2] / "docker"
SEVEN = [
    *([0, 0, 3, 14, 16, 14, 0, 0], [0, 0, 13, 13, 13, 16, 2, 0], [0, 0, 1, 0, 9, 15, 0, 0], [0, 0, 9, 12, 15, 16, 10, 0]),
    *([0, 4, 16, 16, 16, 11, 3, 0], [0, 0, 4, 9, 14, 2, 0, 0], [0, 0, 2, 15, 9, 0, 0, 0], [0, 0, 4, 13, 1, 0, 0, 0]),
]
BODY = {"inputs": [[SEVEN]], "tolerance": 1e-3, "max_iterations": 64}


def reason_to_skip() -> str | None:
    if os.environ.get("JFB_TEST_DOCKER") != "1":
        return "JFB_TEST_DOCKER=1 is not set"
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        return "no Docker engine answers"
    return None


REASON = reason_to_skip()
pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


@dataclass(frozen=True)
class Composed:
    """The containers of `docker compose up`."""

    environment: dict[str, str]
    client: httpx.Client

    def compose(self, *arguments: str) -> str:
        """Run a compose command and return what it printed."""
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
        command = ["docker", "compose"] if plugin else ["docker-compose"]
        return _run(*command, "-p", "jfbtest", "-f", str(FOLDER / "compose.yaml"), *arguments, environment=self.environment)

    def container(self, service: str) -> str:
        """A service's container."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str) -> dict[str, object]:
        """Docker's description of a service's container: `State`, `RestartCount`, ..."""
        (found,) = json.loads(_run("docker", "inspect", self.container(service)))
        return dict(found)

    def python(self, program: str) -> str:
        """Run a program in the server's container."""
        return _run("docker", "exec", self.container("server"), "python", "-S", "-c", program)

    def is_ready(self) -> bool:
        try:
            return self.client.get("/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def composed() -> Iterator[Composed]:
    port = free_port()
    environment = os.environ | {"JFB_PORT": str(port), "DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1"}
    if list((FOLDER / "wheels").glob("torch-*.whl")):
        environment["PIP_NO_INDEX"] = "1"
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        one = Composed(environment, client)
        try:
            one.compose("build", "trainer")
            one.compose("build", "server")
            one.compose("up", "--detach")
            wait_until(one.is_ready, 300, "the first model is trained and served")
            yield one
        finally:
            one.compose("down", "--volumes", "--timeout", "20")


def test_up_trains_a_first_model_and_serves_it(composed: Composed) -> None:
    answer = composed.client.post("/predict", json=BODY)
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["predictions"]
    assert (answer.json()["model"], row["label"], row["status"]) == ("digits", "7", "converged")
    wait_until(lambda: "healthy" in json.dumps(composed.inspect("server")["State"]), 30, "the health check has run")


def test_another_up_does_not_train_again(composed: Composed) -> None:
    composed.compose("up", "--detach")
    wait_until(lambda: '"Running": false' in json.dumps(composed.inspect("trainer")["State"]), 60, "the trainer has ended")
    assert "/model_store/digits/1" in composed.compose("logs", "trainer")
    wait_until(composed.is_ready, 60, "it serves")
    assert composed.client.get("/models/digits").json()["versions"] == [1]


def test_the_server_is_an_ordinary_user_and_writes_only_to_tmp(composed: Composed) -> None:
    assert composed.python("import os; print(os.getuid())").strip() == "10001"
    assert "CapEff:\t0000000000000000" in composed.python("print(open('/proc/1/status').read())")
    for place in ("/", "/model_store", "/usr/local"):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            composed.python(f"open('{place}/new', 'w')")
        assert "Read-only file system" in failed.value.stderr


def test_a_server_that_is_killed_comes_back(composed: Composed) -> None:
    before = composed.inspect("server")["RestartCount"]
    assert isinstance(before, int)
    # The init process lives as long as its one child, which is the server.
    composed.python("import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 9)")
    wait_until(lambda: composed.inspect("server")["RestartCount"] == before + 1, 30, "Docker restarts it")
    wait_until(composed.is_ready, 60, "it serves again")
    assert composed.client.post("/predict", json=BODY).status_code == 200


def test_a_stopped_server_turns_not_ready_before_it_finishes(composed: Composed) -> None:
    stopping = threading.Event()

    def predict_until_it_is_not_ready() -> list[int]:
        """Send requests as a load balancer does: one more after the server is not ready, because balancers notice late."""
        answers: list[int] = []
        ready = True
        while ready:
            ready = composed.is_ready()
            answers.append(composed.client.post("/predict", json=BODY).status_code)
        assert stopping.is_set()
        return answers

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(predict_until_it_is_not_ready) for _ in range(4)]
        wait_until(lambda: composed.client.get("/metrics").text.count('status="converged"') > 0, 30, "there is load")
        stopping.set()
        _run("docker", "stop", "--time", "30", composed.container("server"))
        for client in clients:
            assert set(client.result()) == {200}
    state = composed.inspect("server")["State"]
    assert isinstance(state, dict)
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    try:
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
