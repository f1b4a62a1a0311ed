"""The clients of benchmarks/serving check every response, and count wrong labels and failures."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from benchmarks.serving import load
from benchmarks.serving.requests import LOOSE, STRICT, Request, encode
from benchmarks.serving.rows import Row

REQUESTS = [Request([0], LOOSE, frozenset("3")), Request([1], STRICT, frozenset("4"))]
ENCODED = [encode(request, Row("", (), {"max_iterations": 9})) for request in REQUESTS]


Drive = Callable[[int], Awaitable[load.Outcome]]


def measure(respond: Callable[[dict[str, object]], tuple[int, str]], drive: Drive) -> load.Outcome:
    """Run a load against a server that responds to each body with a status, a label and 7 iterations."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                status, label = respond(json.loads(await reader.readexactly(length)))
                content = json.dumps({"predictions": [{"label": label, "iterations": 7}]}).encode()
                writer.write(b"HTTP/1.1 %d \r\ncontent-length: %d\r\n\r\n%s" % (status, len(content), content))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def main() -> load.Outcome:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            outcome = await drive(server.sockets[0].getsockname()[1])
            await asyncio.sleep(0.05)  # for the connections to close before the loop does
            return outcome

    return asyncio.run(main())


def closed_loop(port: int) -> Awaitable[load.Outcome]:
    return load.closed_loop(port, REQUESTS, ENCODED, clients=3, ramp=0.05, seconds=0.2)


def poisson(port: int) -> Awaitable[load.Outcome]:
    return load.poisson(port, REQUESTS, ENCODED, rate=500, ramp=0.05, seconds=0.3)


@pytest.mark.parametrize("drive", [closed_loop, poisson])
def test_correct_responses_are_counted_half_loose_and_half_strict(drive: Drive) -> None:
    outcome = measure(lambda body: (200, "3" if body["tolerance"] == LOOSE else "4"), drive)
    assert (outcome.wrong, outcome.failed) == (0, 0), outcome.failure
    assert outcome.answered > 20
    assert np.unique(outcome.iterations).tolist() == [7]
    loose, strict = (len(outcome.latencies[tolerance]) for tolerance in (LOOSE, STRICT))
    assert loose + strict == outcome.answered
    assert abs(loose - strict) <= 4


@pytest.mark.parametrize("drive", [closed_loop, poisson])
def test_wrong_labels_and_failures_are_counted_separately(drive: Drive) -> None:
    outcome = measure(lambda body: (200, "4") if body["tolerance"] == LOOSE else (503, "4"), drive)
    assert outcome.wrong > 10
    assert outcome.failed > 10
    assert "503" in outcome.failure
    assert STRICT not in outcome.latencies


def test_an_encoded_request_has_the_fields_of_its_row_and_is_wrapped_in_its_list() -> None:
    body = json.loads(encode(REQUESTS[0], Row("", (), {"solver": "anderson"}, wrapped_in="requests")).partition(b"\r\n\r\n")[2])
    assert body == {"requests": [{"inputs": [[0]], "tolerance": LOOSE, "solver": "anderson"}]}
