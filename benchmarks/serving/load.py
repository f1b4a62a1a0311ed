"""The clients: connections that each wait for an answer before they ask again, and a Poisson process that does not wait.

Requests are bytes made beforehand; answers are parsed by httptools on uvloop, and every one is looked at. On its core this drives
more requests than any server here can answer (``--check-load`` measures it).
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

from benchmarks.serving.questions import Question

MOST_CONNECTIONS = 512
"""Of the Poisson process; what arrives when all are busy waits on this side, and its time counts."""
PATIENCE = 5.0
"""Seconds that the Poisson process waits for its last answers. What is not there then counts as if it came at that moment."""


class Prediction(msgspec.Struct):
    """As far as it is looked at."""

    label: str
    iterations: int


class _Answer(msgspec.Struct):
    predictions: list[Prediction]


_decoder = msgspec.json.Decoder(_Answer | list[Prediction])  # BentoML's answers are the list alone


@dataclass
class Outcome:
    """What came of one load."""

    seconds: float
    latencies: dict[float, list[float]] = field(default_factory=dict)
    """Seconds, by tolerance, of what was answered while it was measured."""
    iterations: list[int] = field(default_factory=list)
    wrong: int = 0
    """Answers whose label is none of the right ones."""
    failed: int = 0
    """Answers that were no predictions, lost connections, and what was never answered."""
    failure: str = ""
    """The last of them."""

    @property
    def answered(self) -> int:
        return len(self.iterations)

    def take(self, question: Question, status: int, body: bytes, seconds: float, *, counts: bool) -> None:
        """Look at an answer; ``counts`` says whether it came while it was measured."""
        try:
            if status != 200:
                raise ValueError(f"status {status}")
            decoded = _decoder.decode(body)
            predictions = decoded.predictions if isinstance(decoded, _Answer) else decoded
            prediction = predictions[0]
        except (ValueError, IndexError) as error:
            self.failed += 1
            self.failure = f"{error}: {body[:200]!r}"
            return
        self.wrong += prediction.label not in question.right
        if counts:
            self.latencies.setdefault(question.tolerance, []).append(seconds)
            self.iterations.append(prediction.iterations)

    def percentile(self, tolerance: float, share: float) -> float:
        """Of the latencies, in milliseconds."""
        found = self.latencies.get(tolerance)
        return 1e3 * float(np.quantile(found, share)) if found else float("nan")


class Connection(asyncio.Protocol):
    """One request at a time over one connection; ``answered`` is told status and body."""

    def __init__(self, answered: "Callable[[Connection, int, bytes], None]", lost: Callable[[], None]) -> None:
        self._answered, self._lost = answered, lost
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self.busy = False

    def ask(self, request: bytes) -> None:
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
            self._lost()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        body, status = b"".join(self._chunks), self._parser.get_status_code()
        self._chunks.clear()
        self.busy = False
        self._answered(self, status, body)


async def closed(
    port: int, questions: list[Question], requests: list[bytes], clients: int, ramp: float, seconds: float
) -> Outcome:
    """So many clients, each of which asks again as soon as it is answered.

    Args:
        requests: the questions' bytes; asked in turn, again and again.
        ramp: seconds before the measurement.
        seconds: of the measurement.
    """
    outcome = Outcome(seconds)
    turn = itertools.cycle(zip(questions, requests, strict=True))
    asked: dict[Connection, tuple[Question, float]] = {}
    begin = time.perf_counter() + ramp
    end = begin + seconds
    over = asyncio.get_running_loop().create_future()

    def ask(connection: Connection) -> None:
        question, content = next(turn)
        asked[connection] = question, time.perf_counter()
        connection.ask(content)

    def answered(connection: Connection, status: int, body: bytes) -> None:
        question, since = asked.pop(connection)
        now = time.perf_counter()
        if now >= end:
            if not over.done():
                over.set_result(None)
            return
        outcome.take(question, status, body, now - since, counts=now >= begin)
        ask(connection)

    def lost() -> None:
        outcome.failed += 1
        outcome.failure = "a connection was closed instead of an answer"

    connections = [await _connect(port, answered, lost) for _ in range(clients)]
    for connection in connections:
        ask(connection)
    await asyncio.wait([over], timeout=ramp + seconds + PATIENCE)
    await _close(connections)
    return outcome


async def poisson(
    port: int, questions: list[Question], requests: list[bytes], rate: float, ramp: float, seconds: float
) -> Outcome:
    """Requests that arrive at random, ``rate`` a second, whether or not earlier ones were answered.

    A latency begins when the request arrives here, also if no connection is free. What arrives in the ramp is not counted.
    """
    outcome = Outcome(seconds)
    loop = asyncio.get_running_loop()
    gaps = np.random.default_rng(0).exponential(1 / rate, int(2 * rate * (ramp + seconds) + 100))
    arrivals = np.cumsum(gaps)
    arrivals = arrivals[arrivals < ramp + seconds]
    turn = itertools.cycle(zip(questions, requests, strict=True))
    asked: dict[Connection, tuple[Question, float]] = {}
    waiting: deque[tuple[Question, bytes, float]] = deque()
    idle: list[Connection] = []
    connections: list[Connection] = []
    unanswered = 0
    start = time.perf_counter()
    begin = start + ramp

    def ask(connection: Connection, question: Question, content: bytes, since: float) -> None:
        asked[connection] = question, since
        connection.ask(content)

    def answered(connection: Connection, status: int, body: bytes) -> None:
        nonlocal unanswered
        question, since = asked.pop(connection)
        unanswered -= 1
        outcome.take(question, status, body, time.perf_counter() - since, counts=since >= begin)
        if waiting:
            ask(connection, *waiting.popleft())
        else:
            idle.append(connection)

    def lost() -> None:
        nonlocal unanswered
        unanswered -= 1
        outcome.failed += 1
        outcome.failure = "a connection was closed instead of an answer"

    for arrival in arrivals:
        since = start + float(arrival)
        if (delay := since - time.perf_counter()) > 0:
            await asyncio.sleep(delay)
        unanswered += 1
        question, content = next(turn)
        if not idle and len(connections) < MOST_CONNECTIONS:
            connections.append(await _connect(port, answered, lost))
            idle.append(connections[-1])
        if idle:
            ask(idle.pop(), question, content, since)
        else:
            waiting.append((question, content, since))
    until = loop.time() + PATIENCE
    while unanswered and loop.time() < until:
        await asyncio.sleep(0.01)
    now = time.perf_counter()
    late = [*asked.values(), *((question, since) for question, _, since in waiting)]
    for question, since in late:
        outcome.failed += 1
        outcome.failure = f"not answered {PATIENCE:g} s after the last request"
        outcome.latencies.setdefault(question.tolerance, []).append(now - since)
    await _close(connections)
    return outcome


async def _connect(port: int, answered: Callable[[Connection, int, bytes], None], lost: Callable[[], None]) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(answered, lost), "127.0.0.1", port)
    return connection


async def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.busy = False  # so that nobody takes it for lost
        connection.close()
    await asyncio.sleep(0.01)  # for the sockets to be closed before the loop is
