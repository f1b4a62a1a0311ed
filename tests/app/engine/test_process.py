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

from app.engine_client.messages import Answer, Cancel, Failed, Look, NotServed, Question, Refused, State, Submit, ToClient

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
        self._heard: list[ToClient] = []

    def send(self, *messages: object) -> None:
        self.socket.send(msgspec.msgpack.encode(messages))

    def receive(self) -> Any:
        while not self._heard:
            assert self.socket.poll(PATIENCE), "the engine does not answer"
            self._heard = msgspec.msgpack.decode(self.socket.recv(), type=list[ToClient])
        return self._heard.pop(0)

    def assert_silent(self) -> None:
        assert not self._heard
        assert not self.socket.poll(0)

    def assert_alive(self) -> State:
        self.send(Look())
        state = self.receive()
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


PICTURE = np.full((1, 1, 8, 8), 3, dtype="<f4").tobytes()
VECTOR = np.ones(4, dtype="<f4").tobytes()


def submit(id: int, rows: int = 1, model: str = "digits", cap: int = 50, inputs: bytes | None = None) -> Submit:
    tolerance, row = (1e-30, VECTOR) if model == "slow" else (1e-3, PICTURE)
    question = Question(model, 1, [tolerance] * rows, [cap] * rows, [None] * rows)
    return Submit(id, question, row * rows if inputs is None else inputs)


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
        [msgspec.msgpack.encode([])],
        [msgspec.msgpack.encode([{"type": "submit"}])],
        [msgspec.msgpack.encode([{"type": "explode", "id": 1}])],
        [msgspec.msgpack.encode(["submit", 1])],
        [msgspec.msgpack.encode([{"type": "submit", "id": "one", "question": None}]), PICTURE],
        [msgspec.msgpack.encode([Cancel(12345)])],
        [msgspec.msgpack.encode(Cancel(12345))],
        [msgspec.msgpack.encode([Look()])[:-2]],
    ],
)
def test_garbage_does_not_disturb_the_engine(dealer: Dealer, frames: list[bytes]) -> None:
    dealer.socket.send_multipart(frames)
    dealer.send(submit(1))
    answer = dealer.receive()
    assert isinstance(answer, Answer)
    assert answer.id == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (submit(7, inputs=b""), "inputs: expected 256 bytes, 1 float32 rows of shape [1, 8, 8], got 0"),
        (submit(7, inputs=PICTURE[:-1]), "inputs: expected 256 bytes, 1 float32 rows of shape [1, 8, 8], got 255"),
        (submit(7, rows=2, inputs=PICTURE), "inputs: expected 512 bytes"),
        (submit(7, rows=0), "inputs: expected at least one row"),
        (submit(7, cap=0), "max_iterations: expected integers of at least 1"),
        (submit(7, cap=2**64 - 1), "max_iterations: expected integers of at least 1"),
        (Submit(7, Question("digits", 1, [-1.0], [1], [None]), PICTURE), "tolerance: expected positive finite numbers"),
        (Submit(7, Question("digits", 1, [1.0], [1, 2], [None]), PICTURE), "max_iterations: expected 1 values"),
    ],
)
def test_a_request_that_cannot_be_computed_is_answered_with_the_reason(dealer: Dealer, message: Submit, reason: str) -> None:
    dealer.send(message)
    failed = dealer.receive()
    assert isinstance(failed, Failed)
    assert failed.id == 7
    assert reason in failed.reason
    dealer.assert_alive()


@pytest.mark.parametrize(
    "message",
    [
        submit(7, model="nobody"),
        Submit(7, Question("digits", 9, [1.0], [1], [None]), PICTURE),
        Submit(7, Question("digits", 1, [1.0], [1], [None], fingerprint="old"), PICTURE),
    ],
)
def test_a_request_for_what_is_not_served_is_told_what_is(dealer: Dealer, message: Submit) -> None:
    dealer.send(message)
    state = dealer.receive()
    assert isinstance(state, State)
    assert len(state.served) == 4
    assert dealer.receive() == NotServed(7)


def test_what_one_frame_says_is_done_in_its_order_and_a_failure_is_its_own(dealer: Dealer) -> None:
    forever = submit(1, model="slow", cap=10**9)
    dealer.send(forever, submit(2, inputs=b""), submit(3, model="nobody"), Cancel(1), submit(1, model="slow", cap=2), submit(4))
    failed, state, not_served = (dealer.receive() for _ in range(3))
    assert (failed.id, type(failed)) == (2, Failed)
    assert (type(state), not_served) == (State, NotServed(3))
    answers = {answer.id: answer for answer in (dealer.receive(), dealer.receive())}
    assert answers.keys() == {1, 4}
    assert answers[1].iterations == [2]
    dealer.assert_silent()


def test_two_clients_may_use_the_same_numbers(context: "zmq.Context[Any]", address: str) -> None:
    first, second = Dealer(context, address), Dealer(context, address)
    first.send(submit(1, rows=1))
    second.send(submit(1, rows=2))
    one, two = first.receive(), second.receive()
    assert (one.id, len(one.status)) == (1, 1)
    assert (two.id, len(two.status)) == (1, 2)
    assert len(two.logits) == 2 * 10 * 4
    for dealer in (first, second):
        dealer.assert_silent()
        dealer.socket.close()


def test_a_full_queue_refuses_and_says_when_to_come_again(dealer: Dealer) -> None:
    dealer.send(submit(1, rows=60, model="slow", cap=10**9))
    dealer.send(submit(2, rows=60, model="slow", cap=10**9))
    refused = dealer.receive()
    assert isinstance(refused, Refused)
    assert refused.id == 2
    assert 60 - 8 <= refused.waiting_rows <= 60
    assert refused.max_waiting_rows == 64
    assert refused.retry_after > 0
    dealer.send(Cancel(1))
    dealer.send(submit(3, rows=60, model="slow", cap=3))
    answer = dealer.receive()
    assert (answer.id, answer.iterations) == (3, [3] * 60)


def test_a_number_in_use_is_not_taken_twice(dealer: Dealer) -> None:
    dealer.send(submit(1, model="slow", cap=10**9))
    dealer.send(submit(1, model="slow", cap=10**9))
    failed = dealer.receive()
    assert (failed.id, failed.reason) == (1, "id: 1 is in use")
    dealer.send(Cancel(1))
    dealer.send(submit(1, model="slow", cap=2))
    answer = dealer.receive()
    assert (answer.id, answer.iterations) == (1, [2])


def test_sigterm_lets_it_finish_what_it_has(context: "zmq.Context[Any]", store: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path / 'socket'}"
    with running_engine(store, address) as process:
        dealer = Dealer(context, address)
        dealer.assert_alive()
        for id in range(20):
            dealer.send(submit(id, model="slow", cap=2000))
        dealer.assert_alive()  # it has them all
        process.send_signal(signal.SIGTERM)
        answers = [dealer.receive() for _ in range(20)]
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
        dealer.send(submit(1, model="slow", cap=10**9))
        dealer.assert_alive()
        assert process.stdin is not None
        process.stdin.close()  # what the system does for a process that has died
        process.wait(60)
        dealer.socket.close()
