"""Attacks on the framing of HTTP: heads, chunks, trailers, half-closed connections, clients that do not read."""

import json
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.app.running import RunningServer, connected, wait_until
from tests.security.conftest import answered, resident_bytes

MB = 1024 * 1024
CONTENT = json.dumps({"inputs": np.zeros((1, 1, 8, 8)).tolist()}).encode()
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\n\r\n"
GET = b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n"
JSON = b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
POST = JSON + b"transfer-encoding: chunked\r\n\r\n"
WHOLE = JSON + b"content-length: %d\r\n\r\n%s" % (len(CONTENT), CONTENT)
CHUNK = b"%x\r\n%s\r\n" % (len(CONTENT), CONTENT)


def flood(sock: socket.socket, lump: bytes, total: int) -> None:
    """Send the same bytes again and again; the server may end the connection in the meantime."""
    try:
        for _ in range(total // len(lump)):
            sock.sendall(lump)
    except ConnectionError:
        pass


@pytest.mark.parametrize(
    ("begin", "lump"),
    [
        (CHUNK + b"0\r\n", b"x-trailer: 1\r\n" * 5000),
        (CHUNK + b"0\r\nx-trailer: ", b"a" * 65_536),
        (b"1;extension=", b"a" * 65_536),
        (b"".join(b"1;%s\r\n{\r\n" % (b"a" * 200) for _ in range(3)) + b"1;", b"a" * 65_536),
    ],
    ids=["trailers", "one trailer", "chunk extension", "later chunk extension"],
)
@pytest.mark.parametrize("head", [POST, GET], ids=["POST", "GET"])
def test_a_chunked_request_without_end_costs_no_memory_and_is_431(
    server: RunningServer, head: bytes, begin: bytes, lump: bytes
) -> None:
    before = resident_bytes(server.worker_pid())
    with connected(server) as sock:
        sock.sendall(head + begin)
        flood(sock, lump, 16 * MB)
        assert answered(sock)[0] in ((431,) if head is POST else (200, 431))  # a GET may be answered before its body
        assert sock.recv(1) == b""
    assert resident_bytes(server.worker_pid()) - before < 8 * MB


def test_trailers_do_not_pass_for_headers(server: RunningServer) -> None:
    content = json.dumps(
        {"inputs": [{"name": "inputs", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}]},
    ).encode()
    head = b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n"
    with connected(server) as sock:
        sock.sendall(head + b"%x\r\n%s\r\n0\r\ninference-header-content-length: 99999\r\n\r\n" % (len(content), content))
        assert answered(sock)[0] == 200


def test_small_chunks_of_a_usual_size_are_taken(server: RunningServer) -> None:
    pieces = b"".join(b"1;name=value\r\n%c\r\n" % byte for byte in CONTENT.ljust(20_000))
    with connected(server) as sock:
        sock.sendall(POST + pieces + b"0\r\nx-checksum: 1\r\n\r\n" + LIVE)
        assert answered(sock)[0] == 200
        assert answered(sock)[0] == 200


@pytest.mark.parametrize(
    ("head", "status", "error"),
    [
        (b"GET /v2/health/live HTTP/1.1\r\n\r\n", 400, b"host: must be given once (got it 0 times)"),
        (b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400, b"host: must be given once (got it 2 times)"),
        (b"GET /v2/health/live HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", 400, b"host: must be given once (got it 2 times)"),
        (b"GET /v2/health/live\r\n\r\n", 505, b"request: must be HTTP/1.1 (got HTTP/0.9)"),
        (b"GET /v2/health/live HTTP/2.0\r\nhost: t\r\n\r\n", 505, b"request: must be HTTP/1.1 (got HTTP/2.0)"),
        (JSON + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, b"transfer-encoding: must be chunked"),
        (JSON + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, b"request: "),
        (JSON.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 501, b"(got chunked in HTTP/1.0)"),
        (JSON + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", 400, b"request: "),
        (JSON + b"transfer-encoding: identity\r\n\r\n{}", 501, b"(got identity in HTTP/1.1)"),
        (JSON + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400, b"request: "),
        (JSON + b"content-length: +2\r\n\r\n{}", 400, b"request: "),
        (JSON + b"content-length : 2\r\n\r\n{}", 400, b"request: "),
        (JSON + b"x-a: 1\r\n b: 2\r\n\r\n", 400, b"request: "),
        (b"CONNECT t:80 HTTP/1.1\r\nhost: t\r\n\r\n", 400, b"request: "),
        (LIVE[:-2] + b"x-more: 1\r\n" * 128 + b"\r\n", 431, b"headers: must be at most 128 (got more)"),
        (b"GET /%s HTTP/1.1\r\nhost: t\r\n\r\n" % (b"a" * 200_000), 431, b"head: must have at most 65536 bytes (got more)"),
    ],
)
def test_a_head_that_servers_and_proxies_may_read_differently_is_refused(
    server: RunningServer, head: bytes, status: int, error: bytes
) -> None:
    with connected(server) as sock:
        sock.sendall(head)
        got, content = answered(sock)
        assert (got, list(json.loads(content))) == (status, ["error"])
        assert error in content
        assert sock.recv(1) == b""


def test_heads_within_the_limits_are_taken(server: RunningServer) -> None:
    with connected(server) as sock:
        sock.sendall(LIVE[:-2] + b"x-more: 1\r\n" * 127 + b"\r\n")
        assert answered(sock)[0] == 200
        sock.sendall(LIVE[:-2] + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n")  # may be ignored (RFC 9110, section 7.8)
        assert answered(sock)[0] == 200
        sock.sendall(LIVE.replace(b"1.1\r\nhost: t", b"1.0"))
        assert answered(sock)[0] == 200
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    ("sent", "answers"),
    [(WHOLE, 1), (POST + CHUNK + b"0\r\n\r\n", 1), (WHOLE + LIVE + WHOLE, 3), (WHOLE + b"GET /", 1), (LIVE, 1)],
    ids=["whole", "chunked", "pipelined", "and a part", "GET"],
)
def test_a_client_that_closes_its_side_after_its_requests_is_answered(server: RunningServer, sent: bytes, answers: int) -> None:
    with connected(server) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert [answered(sock)[0] for _ in range(answers)] == [200] * answers
        assert sock.recv(1) == b""


def test_a_client_that_closes_its_side_within_a_request_is_disconnected(server: RunningServer) -> None:
    with connected(server) as sock:
        sock.sendall(WHOLE[:-1])
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_requests_before_a_malformed_one_are_answered_first_and_it_is_not_taken_for_their_answer(server: RunningServer) -> None:
    with connected(server) as sock:
        sock.sendall(WHOLE + b"not HTTP\r\n\r\n")
        assert answered(sock)[0] == 200
        assert sock.recv(1) == b""


def test_many_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    with connected(server) as sock:
        sock.sendall((LIVE + WHOLE) * 200)
        assert [answered(sock)[1].startswith(b'{"live"') for _ in range(400)] == [True, False] * 200


def server_end(sock: socket.socket) -> str:
    """How the system lists the server's end of a connection as long as it exists."""
    server, client = (f"0100007F:{address[1]:04X}" for address in (sock.getpeername(), sock.getsockname()))
    return f": {server} {client} "


EVENTS = {"inputs": np.random.default_rng(1).integers(0, 17, (1024, 1, 8, 8)).tolist(), "tolerance": 1e-30, "max_iterations": 300}
STREAM = json.dumps(EVENTS).encode()
UNREAD = [
    JSON + b"accept: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(STREAM) + STREAM,
    b"GET /static/index.html HTTP/1.1\r\nhost: t\r\n\r\n" * 600,
    b"GET /openapi.json HTTP/1.1\r\nhost: t\r\n\r\n" * 150,
]


@pytest.mark.parametrize("sent", UNREAD, ids=["events", "pages", "documents"])
def test_a_client_that_never_reads_is_disconnected(server: RunningServer, sent: bytes) -> None:
    with connected(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        end = server_end(sock)
        sock.sendall(sent)
        wait_until(lambda: end not in Path("/proc/net/tcp").read_text(), 30, "the server resets the connection")


@pytest.mark.parametrize("path", ["/models/", "//models/"])
def test_redirects_do_not_lead_to_the_host_that_the_client_names(server: RunningServer, path: str) -> None:
    answer = httpx.get(f"{server.url}{path}?a=b", headers={"host": "evil.example"})
    assert answer.status_code == 404 or answer.headers["location"] == "/models?a=b"
