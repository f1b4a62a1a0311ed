"""One server that is attacked, and a client that it must answer all the while."""

import io
import itertools
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.running import RunningServer, running_server, wait_until
from tests.app.store import make_store

BODY_TIMEOUT = 4.0
ANSWER_SECONDS = 5.0
"""The longest that any request of the good client may take."""


class GoodClient:
    """A thread that sends one request after the other, each with a known answer, and keeps what went wrong."""

    def __init__(self, url: str) -> None:
        pixels = np.random.default_rng(7).integers(0, 256, size=(8, 8), dtype=np.uint8)
        image, array = io.BytesIO(), io.BytesIO()
        Image.fromarray(pixels).save(image, "PNG")
        np.save(array, pixels[None, None] / 255 * 16)
        self.rounds = 0
        self.failures: list[str] = []
        self._client = httpx.Client(base_url=url, timeout=ANSWER_SECONDS)
        self._requests: list[Callable[[], httpx.Response]] = [
            lambda: self._client.post("/predict", json={"inputs": (pixels[None, None] // 16).tolist()}),
            lambda: self._client.post("/predict", content=image.getvalue(), headers={"content-type": "image/png"}),
            lambda: self._client.post("/predict", content=array.getvalue(), headers={"content-type": "application/x-npy"}),
            lambda: self._client.get("/v2/health/ready"),
        ]
        self._answers = [self._answer(send()) for send in self._requests]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def check(self) -> None:
        """Wait until each request has been answered once more, and ``raise_failures``."""
        rounds = self.rounds + 2
        wait_until(lambda: self.rounds >= rounds, 60, "the good client is answered")
        self.raise_failures()

    def raise_failures(self) -> None:
        """Fail if an answer has been missing, late or different since the last time."""
        failures, self.failures = self.failures, []
        assert not failures, f"{len(failures)} answers were wrong, missing or late, first: {failures[0]}"

    @staticmethod
    def _answer(response: httpx.Response) -> object:
        """What must be the same each time: labels and iterations, but not the last digits of a probability."""
        assert response.status_code == 200, response.text
        content = response.json()
        if "predictions" not in content:
            return content
        return [(one["label"], one["iterations"], one["status"]) for one in content["predictions"]]

    def _run(self) -> None:
        for send, expected in itertools.cycle(zip(self._requests, self._answers, strict=True)):
            if self._stop.wait(0.05):
                return
            try:
                answer = self._answer(send())
                if answer != expected:
                    self.failures.append(f"{answer} instead of {expected}")
            except (httpx.HTTPError, AssertionError, ValueError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            if send is self._requests[-1]:
                self.rounds += 1


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attacked server's model store; see ``tests.app.store``."""
    return make_store(tmp_path_factory.mktemp("attacked_store"))


@pytest.fixture(scope="package")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server that all files of this folder attack, ready."""
    log = tmp_path_factory.mktemp("attacked") / "log"
    with running_server(store, log, default_model="digits", slots=32, body_timeout=BODY_TIMEOUT) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="package")
def good_client(server: RunningServer) -> Iterator[GoodClient]:
    client = GoodClient(server.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def checked_client(good_client: GoodClient) -> Iterator[GoodClient]:
    """The good client, which is still answered after all tests of a file."""
    yield good_client
    good_client.check()


@pytest.fixture(autouse=True)
def _good_client_is_answered(checked_client: GoodClient, server: RunningServer) -> Iterator[None]:
    """The good client is answered during each test, and no process has been replaced."""
    processes = server.worker_pid(), server.engine_pid()
    yield
    checked_client.raise_failures()
    assert (server.worker_pid(), server.engine_pid()) == processes


def answered(sock: socket.socket) -> tuple[int, bytes]:
    """The status and the content of the next answer; not a byte more is read, unlike ``http.client`` does it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, f"the connection was closed after {head!r}"
        head = b"" if (head + byte).endswith(b" 100 Continue\r\n\r\n") else head + byte
    length = re.search(rb"content-length: (\d+)", head)
    assert length, head
    return int(head.split()[1]), sock.recv(int(length[1]), socket.MSG_WAITALL)


def resident_bytes(pid: int) -> int:
    """The memory that a process holds now."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024
