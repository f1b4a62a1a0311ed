"""The engine process over a real socket, driven frame by frame."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from app.engine.device import choose_device
from app.engine_client.messages import (
    Cancel,
    Failed,
    FrameDecoder,
    GetState,
    Iteration,
    Load,
    ModelsChanged,
    NotServed,
    QueueFull,
    Request,
    Result,
    State,
    ToClient,
    Unload,
    encode,
)
from app.settings import EngineConfig
from app.supervisor.lifeline import ALIVE, READY
from jfb.store import ModelVersion, new_version

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 60
RUN = ["-m", "app.engine"]
MAX_FILES = 8  # of app/engine/ on the way of a request


@contextlib.contextmanager
def starting_engine(
    path: Path, run: Sequence[str] = RUN, **settings: object
) -> "Iterator[tuple[subprocess.Popen[str], socket.socket]]":
    """The process and its lifeline."""
    config = EngineConfig.model_validate(
        {"device": "cpu", "threads": 1, "precision": "float32", "slots": 8, "max_waiting_rows": 64} | settings
    )
    lifeline, theirs = socket.socketpair()
    lifeline.settimeout(PATIENCE_SECONDS)
    command = [sys.executable, *run, str(path)]
    with lifeline, subprocess.Popen(command, stdin=theirs.fileno(), stderr=subprocess.PIPE, text=True) as process:
        theirs.close()
        lifeline.sendall(config.model_dump_json().encode() + b"\n")
        try:
            yield process, lifeline
        finally:
            process.kill()


@contextlib.contextmanager
def running_engine(
    path: Path, store: Path, run: Sequence[str] = RUN, **settings: object
) -> "Iterator[tuple[subprocess.Popen[str], socket.socket]]":
    """The same, ready."""
    with starting_engine(path, run, model_store=store, **settings) as (process, lifeline):
        while (byte := lifeline.recv(1)) != READY:
            assert byte == ALIVE  # it is still loading
        yield process, lifeline


class Connection:
    """One client of an engine."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect(str(path))
        self._decoder: FrameDecoder[ToClient] = FrameDecoder(ToClient)
        self._received: list[Any] = []

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *messages: msgspec.Struct) -> None:
        self.socket.sendall(encode(messages))

    def receive(self) -> Any:
        while not self._received:
            data = self.socket.recv(2**20)
            assert data, "the engine has disconnected"
            self._received = list(self._decoder.feed(data))
        return self._received.pop(0)

    def receive_change(self) -> tuple[State, Any]:
        """The answer to a load, and the last state before it; a rescan may have sent others."""
        state = self.receive()
        assert isinstance(state, State)
        while isinstance(message := self.receive(), State):
            state = message
        return state, message

    def assert_silent(self) -> None:
        assert not self._received
        self.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.socket.recv(1)
        self.socket.settimeout(PATIENCE_SECONDS)

    def assert_disconnected(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(2**20):
                pass

    def state(self) -> State:
        self.send(GetState())
        state = self.receive()
        assert isinstance(state, State)
        return state

    def active_rows(self) -> int:
        return sum(counters.active_rows + counters.waiting_rows for counters in self.state().counters)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("engine") / "socket"
    path.touch()  # a stale one
    with running_engine(path, store):
        yield path


@pytest.fixture
def client(path: Path) -> Iterator[Connection]:
    with Connection(path) as connection:
        yield connection


PICTURE = np.full((1, 1, 8, 8), 3, dtype="<f4").tobytes()
VECTOR = np.ones(4, dtype="<f4").tobytes()
FOREVER = 10**9


def request(id: int, rows: int = 1, model: str = "digits", cap: int = 50, inputs: bytes | None = None) -> Request:
    tolerance, row = (1e-30, VECTOR) if model == "slow" else (1e-3, PICTURE)
    inputs = row * rows if inputs is None else inputs
    return Request(model, 1, inputs, [tolerance] * rows, [cap] * rows, [None] * rows, id=id)


def test_a_request_goes_through_few_files_of_the_engine(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "socket"
    with running_engine(path, store, ["-m", "tests.app.engine.visited"]) as (process, _), Connection(path) as client:
        served = client.state().served[0]
        inputs = np.zeros(served.config.input.shape, np.float32).tobytes()
        for id in range(4):  # of two rows, as one might live in one call
            client.send(Request(served.model, served.version, 2 * inputs, [1e-3] * 2, [3] * 2, [None] * 2, id=id))
            assert isinstance(client.receive(), Result)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        (line,) = re.findall("^visited: (.*)$", process.stderr.read(), re.MULTILINE)
    assert {"process.py", "scheduler.py", "lane.py"} <= {*line.split()}
    assert len(line.split()) <= MAX_FILES, line


def test_a_broken_model_is_rejected_with_the_reason_while_the_others_are_served(client: Connection) -> None:
    state = client.state()
    assert [(served.model, served.version) for served in state.served] == [
        ("digits", 1),
        ("digits", 2),
        ("slow", 1),
        ("wild", 1),
    ]
    (refused,) = state.refused
    assert refused.version == ModelVersion("digits", 3)
    assert "format_version" in refused.reason


def frame(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize(
    "data",
    [
        frame(b""),
        frame(b"\x00" * 1000),
        frame(b"not a message" + PICTURE),
        frame(msgspec.msgpack.encode([{"type": "request"}])),
        frame(msgspec.msgpack.encode([{"type": "explode", "id": 1}])),
        frame(msgspec.msgpack.encode(["request", 1])),
        frame(msgspec.msgpack.encode([{"type": "request", "id": "one", "inputs": None}])),
        frame(msgspec.msgpack.encode(Cancel(12345))),
        frame(encode([GetState()])[4:-2]),
    ],
)
def test_a_client_that_sends_garbage_is_dropped_and_the_others_are_not(client: Connection, path: Path, data: bytes) -> None:
    client.send(request(1, model="slow", cap=FOREVER))
    with Connection(path) as garbage:
        garbage.socket.sendall(data)
        garbage.assert_disconnected()
    client.send(Cancel(1), request(2))
    result = client.receive()
    assert isinstance(result, Result)
    assert result.id == 2


@pytest.mark.parametrize("messages", [[], [Cancel(12345)]])
def test_messages_that_change_nothing_are_not_answered(client: Connection, messages: list[msgspec.Struct]) -> None:
    client.send(*messages)
    client.send(request(1))
    assert client.receive().id == 1
    client.assert_silent()


def test_a_frame_may_arrive_in_pieces(client: Connection) -> None:
    data = encode([request(1), request(2)])
    for begin in range(0, len(data), 100):
        client.socket.sendall(data[begin : begin + 100])
    assert sorted(client.receive().id for _ in range(2)) == [1, 2]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (request(7, inputs=b""), "inputs: must be 256 bytes, 1 float32 rows of shape [1, 8, 8] (got 0)"),
        (request(7, inputs=PICTURE[:-1]), "inputs: must be 256 bytes, 1 float32 rows of shape [1, 8, 8] (got 255)"),
        (request(7, rows=2, inputs=PICTURE), "inputs: must be 512 bytes"),
        (request(7, rows=0), "inputs: must have at least one row"),
        (request(7, cap=0), "max_iterations: must be at least 1"),
        (request(7, cap=2**64 - 1), "max_iterations: must be at least 1"),
        (Request("digits", 1, PICTURE, [-1.0], [1], [None], id=7), "tolerance: must be positive and finite"),
        (Request("digits", 1, PICTURE, [1.0], [1, 2], [None], id=7), "max_iterations: must have 1 values"),
    ],
)
def test_a_request_that_cannot_be_computed_is_answered_with_the_reason(client: Connection, message: Request, reason: str) -> None:
    client.send(message)
    failed = client.receive()
    assert isinstance(failed, Failed)
    assert failed.id == 7
    assert reason in failed.reason
    client.state()


@pytest.mark.parametrize(
    "message",
    [
        request(7, model="unknown"),
        Request("digits", 9, PICTURE, [1.0], [1], [None], id=7),
        Request("digits", 1, PICTURE, [1.0], [1], [None], id=7, fingerprint="old"),
    ],
)
def test_a_request_for_what_is_not_served_is_answered_with_what_is(client: Connection, message: Request) -> None:
    client.send(message)
    state = client.receive()
    assert isinstance(state, State)
    assert len(state.served) == 4
    assert client.receive() == NotServed(7)


def test_what_one_frame_says_is_done_in_its_order_and_a_failure_is_its_own(client: Connection) -> None:
    forever = request(1, model="slow", cap=FOREVER)
    client.send(
        forever, request(2, inputs=b""), request(3, model="unknown"), Cancel(1), request(1, model="slow", cap=2), request(4)
    )
    failed, state, not_served = (client.receive() for _ in range(3))
    assert (failed.id, type(failed)) == (2, Failed)
    assert (type(state), not_served) == (State, NotServed(3))
    results = {result.id: result for result in (client.receive(), client.receive())}
    assert results.keys() == {1, 4}
    assert results[1].iterations == [2]
    client.assert_silent()


def test_a_streamed_request_is_answered_with_each_iteration_and_then_the_result(client: Connection) -> None:
    streamed = request(5, rows=2, model="slow", cap=3)
    streamed.streamed = True
    client.send(streamed)
    *iterations, result = (client.receive() for _ in range(4))
    assert [type(one) for one in iterations] == [Iteration] * 3
    assert [(one.id, one.rows, one.iterations) for one in iterations] == [(5, [0, 1], [k, k]) for k in (1, 2, 3)]
    assert isinstance(result, Result)
    assert iterations[-1].logits == result.logits


def test_two_clients_may_use_the_same_numbers(path: Path) -> None:
    with Connection(path) as first, Connection(path) as second:
        first.send(request(1, rows=1))
        second.send(request(1, rows=2))
        one, two = first.receive(), second.receive()
        assert (one.id, len(one.status)) == (1, 1)
        assert (two.id, len(two.status)) == (1, 2)
        assert len(two.logits) == 2 * 10 * 4
        for client in (first, second):
            client.assert_silent()


def test_a_full_queue_rejects_and_says_when_to_retry(client: Connection) -> None:
    client.send(request(1, rows=60, model="slow", cap=FOREVER))
    client.send(request(2, rows=60, model="slow", cap=FOREVER))
    full = client.receive()
    assert isinstance(full, QueueFull)
    assert full.id == 2
    assert 60 - 8 <= full.waiting_rows <= 60
    assert full.max_waiting_rows == 64
    assert full.retry_after > 0
    client.send(Cancel(1))
    client.send(request(3, rows=60, model="slow", cap=3))
    result = client.receive()
    assert (result.id, result.iterations) == (3, [3] * 60)


def test_an_id_in_use_is_not_taken_twice(client: Connection) -> None:
    client.send(request(1, model="slow", cap=FOREVER))
    client.send(request(1, model="slow", cap=FOREVER))
    failed = client.receive()
    assert (failed.id, failed.reason) == (1, "id: must be unique (got 1, which is in use)")
    client.send(Cancel(1))
    client.send(request(1, model="slow", cap=2))
    result = client.receive()
    assert (result.id, result.iterations) == (1, [2])


def test_the_requests_of_a_client_that_disconnects_are_cancelled(client: Connection, path: Path) -> None:
    with Connection(path) as leaving:
        leaving.send(request(1, rows=20, model="slow", cap=FOREVER))
        while client.active_rows() < 20:
            pass
    while client.active_rows():
        pass
    client.send(request(1, model="slow", cap=2))
    assert client.receive().iterations == [2]


def test_a_client_that_does_not_read_its_answers_is_dropped_with_what_it_waits_for(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    limited = "import app.engine.process; app.engine.process.MAX_UNSENT_BYTES = 2**20; import app.engine.__main__"
    with running_engine(path, store, ["-c", limited]) as (process, _), Connection(path) as deaf, Connection(path) as client:
        deaf.send(request(1, model="slow", cap=FOREVER))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                deaf.send(*[GetState()] * 100)
        while client.active_rows():
            pass
        deaf.assert_disconnected()
        client.send(request(1))
        assert isinstance(client.receive(), Result)
        process.kill()
        assert process.stderr is not None
        assert "client dropped" in process.stderr.read()


def test_a_load_and_an_unload_are_seen_by_every_client_and_outlive_the_process(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"

    def models(state: State) -> set[str]:
        return {served.model for served in state.served}

    with running_engine(path, store), Connection(path) as first, Connection(path) as second:
        first.state()
        second.state()
        first.send(Unload(1, "slow"), Unload(2, "slow"))
        state, changed, again, failed = (first.receive() for _ in range(4))
        assert (models(state), state.unloaded) == ({"digits", "wild"}, ["slow"])
        assert (changed, again) == (ModelsChanged(1, []), state)
        assert failed == Failed(2, "no model 'slow' is served")
        assert second.receive() == state
    with running_engine(path, store), Connection(path) as client:
        state = client.state()
        assert (models(state), state.unloaded) == ({"digits", "wild"}, ["slow"])
        client.send(Load(3, "slow"))
        state, changed = client.receive_change()
        assert (models(state), state.unloaded, changed) == ({"digits", "slow", "wild"}, [], ModelsChanged(3, []))
        client.send(Load(4, "unknown"))
        assert client.receive_change() == (state, Failed(4, "no model 'unknown' in the store"))
        client.send(Load(5, "digits"))
        _, changed = client.receive_change()
        assert (changed.id, [str(one.version) for one in changed.refused]) == (5, ["digits/3"])
    assert path.with_name("unloaded.json").read_text() == "[]"


def test_the_store_is_rescanned_as_often_as_it_is_set_and_on_sighup_and_sigterm_lets_requests_end(
    store: Path, tmp_path: Path
) -> None:
    path, own = tmp_path / "socket", tmp_path / "store"
    with running_engine(path, own, poll_seconds=0.05) as (process, _), Connection(path) as client:
        assert client.state().served == []
        with new_version(own, "slow") as folder:
            for file in (store / "slow" / "1").iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
        while not (state := client.receive()).served:
            pass
        assert [(served.model, served.version) for served in state.served] == [("slow", 1)]
        assert process.stderr is not None
        while "model loaded" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGHUP)
        assert "model store rescanned" in process.stderr.readline(), "what is polled for is not logged"
        client.send(*(request(id, model="slow", cap=2000) for id in range(20)))
        client.state()  # it has them all
        process.send_signal(signal.SIGTERM)
        results = [client.receive() for _ in range(20)]
        assert sorted(result.id for result in results) == list(range(20))
        assert [result.iterations for result in results] == [[2000]] * 20
        assert process.wait(PATIENCE_SECONDS) == 0


def test_an_engine_beats_idle_or_busy_until_it_ends_with_its_parent(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running_engine(path, store) as (process, lifeline), Connection(path) as client:
        assert lifeline.recv(1) == lifeline.recv(1) == ALIVE
        client.send(request(1, model="slow", cap=FOREVER))
        client.state()
        assert lifeline.recv(1) == lifeline.recv(1) == ALIVE
        lifeline.close()  # what the system does for a process that has died
        process.wait(PATIENCE_SECONDS)


def test_a_device_that_cannot_be_used_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a process that ends so: ``tests/test_commandline.py``."""
    with pytest.raises(SystemExit) as ended:
        choose_device("abacus")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--device must be one that PyTorch can use here (got 'abacus'): ")
