"""What one client can do to the others by how much it sends and by what it writes into its requests: nothing."""

import asyncio
import io
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from starlette.requests import Request

from app.http.auth import ApiKeys, user
from app.schemas.native import MAX_DEADLINE_MS
from app.settings import Settings
from tests.app.running import RunningServer, rejected, wait_until
from tests.security.conftest import GoodClient

FLOOD_REQUESTS, FLOOD_ROWS = 24, 256


def connect(server: RunningServer, address: str) -> socket.socket:
    """Connect from an address of this machine, as another machine would from its own."""
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port or 80), timeout=60, source_address=(address, 0))


@contextmanager
def flood(server: RunningServer, address: str, parameters: str) -> Iterator[None]:
    """More rows than may wait, all sent at once; they are dropped at the end."""
    array = io.BytesIO()
    np.save(array, np.random.default_rng(0).uniform(0, 16, (FLOOD_ROWS, 1, 8, 8)).astype(np.float32))
    body = array.getvalue()
    head = f"POST /predict?{parameters} HTTP/1.1\r\nhost: test\r\ncontent-type: application/x-npy\r\ncontent-length: {len(body)}"
    with ExitStack() as stack:
        for _ in range(FLOOD_REQUESTS):
            sock = stack.enter_context(connect(server, address))
            sock.sendall(head.encode() + b"\r\n\r\n" + body)
        yield


def test_a_flood_of_rows_with_deadlines_delays_no_other_client(server: RunningServer, good_client: GoodClient) -> None:
    parameters = f"tolerance=1e-30&max_iterations=200&deadline_ms={MAX_DEADLINE_MS}"
    with flood(server, "127.0.0.2", parameters):
        wait_until(lambda: server.metric("jfb_engine_waiting_rows", model="digits") > 3000, 30, "the queue is full")
        good_client.check()  # which has no deadline, and sends its requests one by one
        assert server.metric("jfb_http_requests_total", model="digits", status="429") > 0, "more rows than may wait"
        with httpx.Client(base_url=server.url, transport=httpx.HTTPTransport(local_address="127.0.0.3"), timeout=30) as another:
            answer = another.post("/predict", json={"inputs": np.zeros((20, 1, 8, 8)).tolist()})
            assert answer.status_code == 200, "there is room for a client that has no rows yet"
    wait_until(lambda: server.metric("jfb_engine_waiting_rows", model="digits") == 0, 30, "the rows have been dropped")


def test_a_deadline_has_an_upper_limit(server: RunningServer) -> None:
    inputs = np.zeros((1, 1, 8, 8)).tolist()
    for path, body, status in (
        ("/predict", {"inputs": inputs, "deadline_ms": 1e12}, 422),
        ("/predict", {"inputs": inputs, "deadline_ms": [MAX_DEADLINE_MS + 1]}, 422),
        (
            "/v2/models/digits/infer",
            {
                "inputs": [{"name": "inputs", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": inputs}],
                "parameters": {"timeout": 1000 * MAX_DEADLINE_MS + 1000},
            },
            400,
        ),
    ):
        rejected(server.client.post(path, json=body), status, "deadline_ms", "must be finite, above 0 and at most 3600000 (got ")
    assert server.client.post("/predict", json={"inputs": inputs, "deadline_ms": MAX_DEADLINE_MS}).status_code == 200


def of(host: str | None, headers: tuple[tuple[bytes, bytes], ...] = (), keys: str | None = None) -> str:
    """Who sends a request to a server that requires one of these keys, or none."""
    server = SimpleNamespace(api_keys=ApiKeys(Settings.model_validate({"api_keys": keys})))
    app = SimpleNamespace(state=SimpleNamespace(server=server))
    client = None if host is None else (host, 1)
    request = Request({"type": "http", "client": client, "headers": headers, "app": app})
    asyncio.run(user(request))
    found: str = request.scope["client_id"]
    return found


def test_a_client_is_its_key_or_its_address_and_nothing_else_that_it_chooses() -> None:
    assert of("10.0.0.1") != of("10.0.0.2")
    assert of("10.0.0.1") == of("::ffff:10.0.0.1")
    assert of("2001:db8::1") == of("2001:db8::ffff:1"), "one client has all addresses of such a network"
    assert of("2001:db8:0:1::1") != of("2001:db8:0:2::1")
    x, y = (((b"authorization", b"Bearer " + key),) for key in (b"x", b"y"))
    assert of("10.0.0.1", x) == of("10.0.0.1"), "where no key is required"
    assert of("10.0.0.1", ((b"x-forwarded-for", b"10.0.0.9"),)) == of("10.0.0.1")
    assert of("10.0.0.1", x, keys="x,y") == of("10.0.0.2", x, keys="x,y") != of("10.0.0.1", y, keys="x,y")
    assert of("") == of(None)


@pytest.mark.parametrize("host", ["10.0.0.1", "2001:db8::1", "client"])
def test_what_the_engine_hears_of_a_client_does_not_name_it(host: str) -> None:
    assert len(of(host)) == 16
    assert host not in of(host)
