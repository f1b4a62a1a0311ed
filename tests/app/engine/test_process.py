"""The engine process over a real socket, spoken to frame by frame."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from app.engine.messages import Answer, Cancel, Failed, Look, NotServed, Refused, State, Submit, ToClient

pytestmark = pytest.mark.slow

PATIENCE = 60_000  # milliseconds


@contextlib.contextmanager
def running_engine(store: Path, address: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [
        sys.executable,
        "-m",
        "app.engine",
        f"--store={store}",
        f"--address={address}",
        "--threads=1",
        "--precision=float32",
    ]
    with subprocess.Popen([*command, "--slots=8", "--max-waiting-rows=64"], stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


class Dealer:
    """One connection to an engine."""

    def __init__(self, context: "zmq.Context[Any]", address: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)

    def send(self, message: object, *tensors: bytes) -> None:
        self.socket.send_multipart([msgspec.msgpack.encode(message), *tensors])

    def receive(self) -> tuple[Any, list[bytes]]:
        assert self.socket.poll(PATIENCE), "the engine does not answer"
        head, *tensors = self.socket.recv_multipart()
        return msgspec.msgpack.decode(head, type=ToClient), tensors

    def assert_alive(self) -> State:
        self.send(Look())
        state, _ = self.receive()
        assert isinstance(state, State)
        return state


@pytest.fixture(scope="module")
def context() -> Iterator["zmq.Context[Any]"]:
    with zmq.Context() as context:
        yield context


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[str]:
    address = f"ipc://{tmp_path_factory.mktemp('engine') / 'socket'}"
    with running_engine(store, address):
        yield address


@pytest.fixture
def dealer(context: "zmq.Context[Any]", address: str) -> Iterator[Dealer]:
    dealer = Dealer(context, address)
    yield dealer
    dealer.socket.close()


def submit(id: int, rows: int = 1, model: str = "digits", cap: int = 50) -> Submit:
    tolerance = 1e-30 if model == "slow" else 1e-3
    return Submit(model, 1, [tolerance] * rows, [cap] * rows, [None] * rows, id=id)


PICTURE = np.full((1, 1, 8, 8), 3, dtype="<f4").tobytes()


def test_a_broken_model_is_refused_with_the_reason_while_the_others_are_served(dealer: Dealer) -> None:
    state = dealer.assert_alive()
    assert [(served.model, served.version) for served in state.served] == [
        ("digits", 1),
        ("digits", 2),
        ("slow", 1),
        ("wild", 1),
    ]
    assert list(state.refused) == ["digits/3"]
    assert "format_version" in state.refused["digits/3"]


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\x00" * 1000],
        [b"not a message", PICTURE],
        [b"", b"", b""],
        [msgspec.msgpack.encode({"type": "submit"})],
        [msgspec.msgpack.encode({"type": "explode", "id": 1})],
        [msgspec.msgpack.encode(["submit", 1])],
        [msgspec.msgpack.encode({"type": "submit", "id": "one", "model": None}), PICTURE],
        [msgspec.msgpack.encode(Cancel(12345))],
        [msgspec.msgpack.encode(Look())[:-2]],
    ],
)
def test_garbage_does_not_disturb_the_engine(dealer: Dealer, frames: list[bytes]) -> None:
    dealer.socket.send_multipart(frames)
    dealer.send(submit(1), PICTURE)
    answer, _ = dealer.receive()
    assert isinstance(answer, Answer)
    assert answer.id == 1


@pytest.mark.parametrize(
    ("message", "tensors", "reason"),
    [
        (submit(7), [], "inputs: expected one tensor frame, got 0"),
        (submit(7), [PICTURE, PICTURE], "inputs: expected one tensor frame, got 2"),
        (submit(7), [PICTURE[:-1]], "inputs: expected 256 bytes, 1 float32 rows of shape [1, 8, 8], got 255"),
        (submit(7, rows=2), [PICTURE], "inputs: expected 512 bytes"),
        (submit(7, rows=0), [b""], "inputs: expected at least one row"),
        (submit(7, cap=0), [PICTURE], "max_iterations: expected integers of at least 1"),
        (submit(7, cap=2**64 - 1), [PICTURE], "max_iterations: expected integers of at least 1"),
        (Submit("digits", 1, [-1.0], [1], [None], id=7), [PICTURE], "tolerance: expected positive finite numbers"),
        (Submit("digits", 1, [1.0], [1, 2], [None], id=7), [PICTURE], "max_iterations: expected 1 values"),
    ],
)
def test_a_request_that_cannot_be_computed_is_answered_with_the_reason(
    dealer: Dealer, message: Submit, tensors: list[bytes], reason: str
) -> None:
    dealer.send(message, *tensors)
    failed, _ = dealer.receive()
    assert isinstance(failed, Failed)
    assert failed.id == 7
    assert reason in failed.reason
    dealer.assert_alive()


@pytest.mark.parametrize(
    "message",
    [
        submit(7, model="nobody"),
        Submit("digits", 9, [1.0], [1], [None], id=7),
        Submit("digits", 1, [1.0], [1], [None], fingerprint="old", id=7),
    ],
)
def test_a_request_for_what_is_not_served_is_told_what_is(dealer: Dealer, message: Submit) -> None:
    dealer.send(message, PICTURE)
    state, _ = dealer.receive()
    assert isinstance(state, State)
    assert len(state.served) == 4
    answer, _ = dealer.receive()
    assert answer == NotServed(7)


def test_two_clients_may_use_the_same_numbers(context: "zmq.Context[Any]", address: str) -> None:
    first, second = Dealer(context, address), Dealer(context, address)
    first.send(submit(1, rows=1), PICTURE)
    second.send(submit(1, rows=2), PICTURE * 2)
    (one, _), (two, logits) = first.receive(), second.receive()
    assert (one.id, len(one.status)) == (1, 1)
    assert (two.id, len(two.status)) == (1, 2)
    assert len(logits[0]) == 2 * 10 * 4
    for dealer in (first, second):
        assert not dealer.socket.poll(0)
        dealer.socket.close()


def test_a_full_queue_refuses_and_says_when_to_come_again(dealer: Dealer) -> None:
    vectors = np.ones((60, 4), dtype="<f4").tobytes()
    dealer.send(submit(1, rows=60, model="slow", cap=10**9), vectors)
    dealer.send(submit(2, rows=60, model="slow", cap=10**9), vectors)
    refused, _ = dealer.receive()
    assert isinstance(refused, Refused)
    assert refused.id == 2
    assert 60 - 8 <= refused.waiting_rows <= 60
    assert refused.max_waiting_rows == 64
    assert refused.retry_after > 0
    dealer.send(Cancel(1))
    dealer.send(submit(3, rows=60, model="slow", cap=3), vectors)
    answer, _ = dealer.receive()
    assert (answer.id, answer.iterations) == (3, [3] * 60)


def test_a_number_in_use_is_not_taken_twice(dealer: Dealer) -> None:
    vector = np.ones(4, dtype="<f4").tobytes()
    dealer.send(submit(1, model="slow", cap=10**9), vector)
    dealer.send(submit(1, model="slow", cap=10**9), vector)
    failed, _ = dealer.receive()
    assert (failed.id, failed.reason) == (1, "id: 1 is in use")
    dealer.send(Cancel(1))
    dealer.send(submit(1, model="slow", cap=2), vector)
    answer, _ = dealer.receive()
    assert (answer.id, answer.iterations) == (1, [2])


def test_sigterm_lets_it_finish_what_it_has(context: "zmq.Context[Any]", store: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path / 'socket'}"
    with running_engine(store, address) as process:
        dealer = Dealer(context, address)
        dealer.assert_alive()
        for id in range(20):
            dealer.send(submit(id, model="slow", cap=2000), np.ones(4, dtype="<f4").tobytes())
        dealer.assert_alive()  # it has them all
        process.send_signal(signal.SIGTERM)
        answers = [dealer.receive()[0] for _ in range(20)]
        assert sorted(answer.id for answer in answers) == list(range(20))
        assert [answer.iterations for answer in answers] == [[2000]] * 20
        assert process.wait(60) == 0
        dealer.socket.close()


def test_sigterm_ends_an_idle_engine(context: "zmq.Context[Any]", store: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path / 'socket'}"
    with running_engine(store, address) as process:
        dealer = Dealer(context, address)
        dealer.assert_alive()
        dealer.socket.close()
        time.sleep(0.1)  # so that it sleeps on its socket
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_it_ends_with_its_parent_even_in_the_middle_of_work(context: "zmq.Context[Any]", store: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path / 'socket'}"
    with running_engine(store, address) as process:
        dealer = Dealer(context, address)
        dealer.send(submit(1, model="slow", cap=10**9), np.ones(4, dtype="<f4").tobytes())
        dealer.assert_alive()
        assert process.stdin is not None
        process.stdin.close()  # what the system does for a process that has died
        process.wait(60)
        dealer.socket.close()
