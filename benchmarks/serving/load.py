"""The clients: closed-loop connections that wait for each response, and a Poisson process that does not wait.

Requests are encoded beforehand; responses are parsed by httptools on uvloop, and each is checked. On its core this sends more
requests than any of the servers can answer (``--check-load`` measures it).
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import httptools
import msgspec
import numpy as np

from benchmarks.serving.requests import Request

MAX_CONNECTIONS = 512
"""Of the Poisson process; requests that arrive while all are busy wait in the client, and that wait counts as latency."""
DRAIN_SECONDS = 5.0
"""How long the Poisson process waits for its last responses. Those still missing then count as if they came at that moment."""


class Prediction(msgspec.Struct):
    """The fields that are checked."""

    label: str
    iterations: int


class _Response(msgspec.Struct):
    predictions: list[Prediction]


_decoder = msgspec.json.Decoder(_Response | list[Prediction])  # BentoML responds with the list alone


@dataclass
class Outcome:
    """The result of one load."""

    seconds: float
    latencies: dict[float, list[float]] = field(default_factory=dict)
    """Seconds, by tolerance, of the responses in the measured time."""
    iterations: list[int] = field(default_factory=list)
    wrong: int = 0
    """Responses whose label is not one of the correct ones."""
    failed: int = 0
    """Responses without predictions, lost connections, and requests without a response."""
    failure: str = ""
    """The last of them."""

    @property
    def answered(self) -> int:
        return len(self.iterations)

    def record(self, request: Request, status: int, body: bytes, seconds: float, *, counts: bool) -> None:
        """Check a response; ``counts`` says whether it came in the measured time."""
        try:
            if status != 200:
                raise ValueError(f"status {status}")
            decoded = _decoder.decode(body)
            predictions = decoded.predictions if isinstance(decoded, _Response) else decoded
            prediction = predictions[0]
        except (ValueError, IndexError) as error:
            self.failed += 1
            self.failure = f"{error}: {body[:200]!r}"
            return
        self.wrong += prediction.label not in request.correct_labels
        if counts:
            self.latencies.setdefault(request.tolerance, []).append(seconds)
            self.iterations.append(prediction.iterations)

    def percentile(self, tolerance: float, share: float) -> float:
        """Of the latencies, in milliseconds."""
        found = self.latencies.get(tolerance)
        return 1e3 * float(np.quantile(found, share)) if found else float("nan")


class Connection(asyncio.Protocol):
    """One request at a time over one connection.

    Args:
        on_response: called with the connection, the status and the body of each response.
        on_lost: called if the connection closes while a request is in flight.
    """

    def __init__(self, on_response: "Callable[[Connection, int, bytes], None]", on_lost: Callable[[], None]) -> None:
        self._on_response, self._on_lost = on_response, on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self.busy = False

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self.busy = True
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self._on_lost()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        body, status = b"".join(self._chunks), self._parser.get_status_code()
        self._chunks.clear()
        self.busy = False
        self._on_response(self, status, body)


async def closed_loop(
    port: int, requests: list[Request], encoded: list[bytes], clients: int, ramp: float, seconds: float
) -> Outcome:
    """Run ``clients`` connections, each of which sends its next request as soon as it has a response.

    Args:
        encoded: the bytes of the requests, which are sent in order, again and again.
        ramp: seconds before the measurement.
        seconds: of the measurement.
    """
    outcome = Outcome(seconds)
    upcoming = itertools.cycle(zip(requests, encoded, strict=True))
    in_flight: dict[Connection, tuple[Request, float]] = {}
    begin = time.perf_counter() + ramp
    end = begin + seconds
    finished = asyncio.get_running_loop().create_future()

    def send(connection: Connection) -> None:
        request, content = next(upcoming)
        in_flight[connection] = request, time.perf_counter()
        connection.send(content)

    def on_response(connection: Connection, status: int, body: bytes) -> None:
        request, since = in_flight.pop(connection)
        now = time.perf_counter()
        if now >= end:
            if not finished.done():
                finished.set_result(None)
            return
        outcome.record(request, status, body, now - since, counts=now >= begin)
        send(connection)

    def on_lost() -> None:
        outcome.failed += 1
        outcome.failure = "connection closed without a response"

    connections = [await _connect(port, on_response, on_lost) for _ in range(clients)]
    for connection in connections:
        send(connection)
    await asyncio.wait([finished], timeout=ramp + seconds + DRAIN_SECONDS)
    await _close(connections)
    return outcome


async def poisson(port: int, requests: list[Request], encoded: list[bytes], rate: float, ramp: float, seconds: float) -> Outcome:
    """Send requests at random times, ``rate`` per second on average, whether or not earlier ones have been answered.

    A latency starts when the request arrives here, even if no connection is free. Requests that arrive in the ramp do not count.
    """
    outcome = Outcome(seconds)
    loop = asyncio.get_running_loop()
    gaps = np.random.default_rng(0).exponential(1 / rate, int(2 * rate * (ramp + seconds) + 100))
    arrivals = np.cumsum(gaps)
    arrivals = arrivals[arrivals < ramp + seconds]
    upcoming = itertools.cycle(zip(requests, encoded, strict=True))
    in_flight: dict[Connection, tuple[Request, float]] = {}
    queue: deque[tuple[Request, bytes, float]] = deque()
    idle: list[Connection] = []
    connections: list[Connection] = []
    unanswered = 0
    start = time.perf_counter()
    begin = start + ramp

    def send(connection: Connection, request: Request, content: bytes, since: float) -> None:
        in_flight[connection] = request, since
        connection.send(content)

    def on_response(connection: Connection, status: int, body: bytes) -> None:
        nonlocal unanswered
        request, since = in_flight.pop(connection)
        unanswered -= 1
        outcome.record(request, status, body, time.perf_counter() - since, counts=since >= begin)
        if queue:
            send(connection, *queue.popleft())
        else:
            idle.append(connection)

    def on_lost() -> None:
        nonlocal unanswered
        unanswered -= 1
        outcome.failed += 1
        outcome.failure = "connection closed without a response"

    for arrival in arrivals:
        since = start + float(arrival)
        if (delay := since - time.perf_counter()) > 0:
            await asyncio.sleep(delay)
        unanswered += 1
        request, content = next(upcoming)
        if not idle and len(connections) < MAX_CONNECTIONS:
            connections.append(await _connect(port, on_response, on_lost))
            idle.append(connections[-1])
        if idle:
            send(idle.pop(), request, content, since)
        else:
            queue.append((request, content, since))
    until = loop.time() + DRAIN_SECONDS
    while unanswered and loop.time() < until:
        await asyncio.sleep(0.01)
    now = time.perf_counter()
    for request, since in [*in_flight.values(), *((request, since) for request, _, since in queue)]:
        outcome.failed += 1
        outcome.failure = f"no response {DRAIN_SECONDS:g} s after the last request"
        outcome.latencies.setdefault(request.tolerance, []).append(now - since)
    await _close(connections)
    return outcome


async def _connect(port: int, on_response: Callable[[Connection, int, bytes], None], on_lost: Callable[[], None]) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(on_response, on_lost), "127.0.0.1", port)
    return connection


async def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.busy = False  # so that closing it does not count as a lost connection
        connection.close()
    await asyncio.sleep(0.01)  # for the sockets to close before the loop does
