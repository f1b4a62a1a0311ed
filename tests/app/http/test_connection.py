"""Connections: an answer that ends one reaches a client that still sends, and one that is kept is there when it is needed."""

import inspect
import re
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from importlib.metadata import version
from pathlib import Path

import pytest
from uvicorn.protocols.http import httptools_impl

from app.http.connection import BoundedConnection
from tests.app.running import RunningServer, connected, running_server

BODY_TIMEOUT = 1.0
BODY = b'{"inputs": [[0, 1, 2, 3]]}'.ljust(200_000)
LENGTH = f"content-length: {len(BODY)}\r\n".encode()
PREDICT = b"POST /models/slow/predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
CLOSE = b"connection: close\r\n"


@pytest.fixture(scope="module")
def hasty(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a timeout of one second for heads and bodies, and a limit of 250,000 bytes."""
    log = tmp_path_factory.mktemp("hasty") / "log"
    with running_server(store, log, body_timeout=BODY_TIMEOUT, max_body_bytes=250_000) as running:
        running.wait_until_ready()
        yield running


def answered(sock: socket.socket) -> int:
    """The status of the next answer, which is read whole."""
    answer = HTTPResponse(sock)
    answer.begin()
    answer.read()
    return answer.status


@pytest.mark.parametrize(
    ("begin", "rest", "status"),
    [
        (PREDICT + LENGTH + b"\r\n" + BODY[:1000], BODY[1000:], 408),
        (PREDICT + b"x-a: ", b"a" * 50_000, 408),
        (PREDICT + b"x-a: " + b"a" * 70_000, b"a" * 200_000, 431),
        (b"not HTTP\r\n", b"a" * 200_000, 400),
        (PREDICT + CLOSE + b"content-length: 300000\r\n\r\n", BODY, 413),
        (PREDICT.replace(b"json", b"yaml") + CLOSE + LENGTH + b"\r\n", BODY, 415),
        (PREDICT.replace(b"slow", b"none") + CLOSE + LENGTH + b"\r\n", BODY, 404),
    ],
    ids=["late body", "late head", "long head", "no HTTP", "long body", "content type", "no model"],
)
def test_a_client_that_reads_when_it_has_sent_all_gets_the_answer_that_was_there_before(
    hasty: RunningServer, begin: bytes, rest: bytes, status: int
) -> None:
    with connected(hasty) as sock:
        sock.sendall(begin)
        assert sock.recv(1, socket.MSG_PEEK) == b"H"  # it is answered, and goes on
        for at in range(0, len(rest), len(rest) // 4):
            sock.sendall(rest[at : at + len(rest) // 4])
            time.sleep(0.01)
        assert answered(sock) == status
        assert sock.recv(1) == b""


@pytest.mark.parametrize("end", [b"", CLOSE], ids=["kept", "closed"])
def test_a_body_that_is_never_all_there_does_not_hold_its_connection_for_ever(hasty: RunningServer, end: bytes) -> None:
    def trickle() -> None:
        for _ in range(400):
            time.sleep(0.05)
            sock.sendall(b"a")

    with connected(hasty) as sock:
        sock.sendall(PREDICT.replace(b"slow", b"none") + end + LENGTH + b"\r\n")
        assert answered(sock) == 404
        with pytest.raises(ConnectionError):
            trickle()


def test_an_answer_that_was_there_before_its_body_is_read_although_the_body_is_late(hasty: RunningServer) -> None:
    with connected(hasty) as sock:
        sock.sendall(PREDICT.replace(b"slow", b"unknown") + LENGTH + b"\r\n")
        end = time.monotonic() + 1.5 * BODY_TIMEOUT
        while time.monotonic() < end:
            sock.sendall(b"a")
            time.sleep(0.05)
        assert answered(sock) == 404
        assert sock.recv(1) == b""


def test_heads_that_arrive_piece_by_piece_on_a_connection_that_was_used_are_late_too(hasty: RunningServer) -> None:
    with connected(hasty) as sock:
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\n\r\n")
        assert answered(sock) == 200
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\n")
        assert answered(sock) == 408
        assert sock.recv(1) == b""


def test_a_connection_may_be_idle_for_longer_than_usual_clients_keep_one(hasty: RunningServer) -> None:
    """Otherwise it could close while a client sends its next request: httpx reuses a connection for up to five seconds."""
    rejected = PREDICT.replace(b"slow", b"none") + LENGTH + b"\r\n"
    with connected(hasty) as used, connected(hasty) as rejected_once:
        used.sendall(PREDICT + LENGTH + b"\r\n" + BODY)
        rejected_once.sendall(rejected + BODY)
        assert (answered(used), answered(rejected_once)) == (200, 404)
        time.sleep(5.5)
        for sock in (used, rejected_once):
            sock.sendall(PREDICT + LENGTH + b"\r\n" + BODY)
            assert answered(sock) == 200


def test_what_is_used_of_uvicorn_is_there() -> None:
    """If this fails, uvicorn has changed: read app/http/connection.py against it, and move the bound on its version."""
    theirs = httptools_impl.HttpToolsProtocol
    for name, method in vars(BoundedConnection).items():
        if inspect.isfunction(method) and hasattr(theirs, name):
            assert list(inspect.signature(method).parameters) == list(inspect.signature(getattr(theirs, name)).parameters)
    overridden = {"connection_made", "connection_lost", "data_received", "eof_received", "pause_writing", "resume_writing"}
    overridden |= {"on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete"}
    overridden |= {"on_response_complete", "shutdown", "send_400_response"}
    assert overridden == {name for name in vars(BoundedConnection) if hasattr(theirs, name) and not name.startswith("__")}
    used = ("timeout_keep_alive_task", "timeout_keep_alive_handler", "_unset_keepalive_if_required", "on_response_complete")
    assert set(used) <= set(re.findall(r"self\.(\w+)", inspect.getsource(theirs)))
    assert "self.response_complete" in inspect.getsource(httptools_impl.RequestResponseCycle)
    assert version("uvicorn").startswith("0.54.")
    assert '"uvicorn>=0.54,<0.55"' in (Path(__file__).resolve().parents[3] / "pyproject.toml").read_text()
