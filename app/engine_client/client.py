"""EngineClient: how the HTTP process asks the engine process."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import structlog
import zmq
from msgspec import Raw
from numpy.typing import NDArray

from app.engine_client import messages
from app.engine_client.errors import EngineDied, LoadFailed, NotServed, QueueFull, RequestFailed
from app.engine_client.messages import (
    Answer,
    Cancel,
    Changed,
    Failed,
    Gone,
    Load,
    Look,
    Moments,
    Progress,
    Question,
    Refused,
    State,
    Submit,
    ToClient,
    ToEngine,
    Unload,
)

LAST_WORDS = 0.05
"""Seconds of silence after which an engine that has gone is taken to have said all that it had to say."""

MOST_ITERATIONS_HELD = 1024
"""Of a watched request; those that nobody has fetched by then are lost, the oldest first."""

LONGEST_REFUSAL = 0.1
"""Seconds for which the engine's word that its queue is full is repeated at most, without asking it again."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Computed:
    """An answered request, row by row."""

    logits: NDArray[np.float32]
    """Shape ``[n, classes]``; NaN for rows without an iteration."""
    iterations: list[int]
    residual: list[float]
    status: list[str]
    """The words of ``jfb.Status``."""
    moments: Moments
    margin: list[float] | None = None
    bound: list[float] | None = None
    """As in ``messages.Answer``."""


@dataclass(frozen=True)
class Iteration:
    """What one iteration came to for m rows of a watched request."""

    rows: list[int]
    iterations: list[int]
    residual: list[float]
    logits: NDArray[np.float32]
    """Shape ``[m, classes]``: the answer if the rows ended here."""


@dataclass(frozen=True)
class _Full:
    """The engine has refused some rows, and until then it will have no room for as many."""

    rows: int
    until: float
    error: QueueFull


@dataclass(frozen=True)
class _Watcher:
    seen: deque[Iteration]
    news: asyncio.Event


class EngineClient:
    """One asyncio program's connection to an engine, whichever process that is at the moment.

    Every request ends exactly once: with its answer, or with an exception. ``connect`` and ``disconnect`` are the
    supervisor's business.

    Args:
        name: of this client among those of the engine, one that none of them ever had; ZeroMQ makes one up if None.

    Attributes:
        state: the latest that the engine said of itself, None before the first time; kept while the engine is away.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self.state: State | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._unsent: list[Raw] = []
        self._numbers = itertools.count()
        self._requests: dict[int, asyncio.Future[Computed]] = {}
        self._watchers: dict[int, _Watcher] = {}
        self._full: dict[tuple[str, int], _Full] = {}
        self._changes: dict[int, asyncio.Future[dict[str, str]]] = {}
        self._looks: list[asyncio.Future[State]] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[ToClient])

    def connect(self, address: str) -> None:
        """Begin to talk to the engine that binds, or will bind, a ZeroMQ address."""
        self._context = self._context or zmq.Context()
        socket = self._context.socket(zmq.DEALER)
        if self._name is not None:
            socket.setsockopt(zmq.IDENTITY, self._name.encode())
        socket.setsockopt(zmq.SNDHWM, 0)  # the engine's queue is the bound; here nothing is held back or dropped
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        self._socket = socket
        asyncio.get_running_loop().add_reader(socket.fileno(), self._receive, socket)

    async def disconnect(self) -> None:
        """Take in what a gone engine still said; whatever is unanswered then raises ``EngineDied``."""
        if self._socket is None:
            return
        socket, self._socket = self._socket, None  # from here on, new requests raise
        self._unsent.clear()
        asyncio.get_running_loop().remove_reader(socket.fileno())
        self._receive(socket)
        while self._requests:
            await asyncio.sleep(LAST_WORDS)
            if not self._receive(socket):
                break
        socket.close()
        self._full.clear()
        unanswered: list[asyncio.Future[Any]] = [*self._requests.values(), *self._changes.values(), *self._looks]
        for future in unanswered:
            if not future.done():
                future.set_exception(EngineDied("the engine process died"))

    async def close(self) -> None:
        """Disconnect for good."""
        await self.disconnect()
        if self._context is not None:
            self._context.term()
            self._context = None

    async def predict(self, question: Question, inputs: NDArray[np.generic]) -> Computed:
        """Have n rows computed; cancelling the awaiting task drops them in the engine.

        Args:
            question: what is asked about them.
            inputs: raw, shape ``[n, *input_shape]``; sent as float32.

        Raises:
            NotServed: if the engine serves no such version, or not that load of it; ``state`` is up to date then.
            QueueFull: if the rows do not fit into the engine's queue now.
            EngineDied: if there is no engine, or it died before it answered.
            RequestFailed: if the rows cannot be computed.
        """
        submit = Submit(next(self._numbers), question, _bytes(inputs))
        async with self._asked(submit) as future:
            return await future

    async def watch(self, question: Question, inputs: NDArray[np.generic]) -> AsyncGenerator[Iteration | Computed, None]:
        """Have n rows computed and see each iteration; the answer comes last. Closing the iterator drops the rows.

        The arguments, and what is raised, are those of ``predict``. Whoever fetches too slowly misses iterations.
        """
        submit = Submit(next(self._numbers), question, _bytes(inputs), watched=True)
        watcher = _Watcher(deque(maxlen=MOST_ITERATIONS_HELD), asyncio.Event())
        self._watchers[submit.id] = watcher
        try:
            async with self._asked(submit) as future:
                future.add_done_callback(lambda _: watcher.news.set())
                while True:
                    await watcher.news.wait()
                    watcher.news.clear()
                    while watcher.seen:
                        yield watcher.seen.popleft()
                    if future.done():
                        break
                yield future.result()
        finally:
            del self._watchers[submit.id]

    def refuse_if_full(self, model: str, version: int, rows: int = 1) -> None:
        """Do at once, and without the engine, what it would do: a refused request must cost less than an answered one.

        Args:
            model, version: that would be asked.
            rows: that a request has at least.

        Raises:
            QueueFull: if the engine has refused as many rows or fewer, and has not had the time since to make room for them.
        """
        full = self._full.get((model, version))
        if full is not None and rows >= full.rows:
            if time.monotonic() < full.until:
                raise QueueFull(full.error.waiting_rows, full.error.max_waiting_rows, full.error.retry_after)
            del self._full[model, version]

    @asynccontextmanager
    async def _asked(self, submit: Submit) -> AsyncIterator[asyncio.Future[Computed]]:
        """A request under way; leaving before it is answered drops it in the engine."""
        model, version, rows = submit.question.model, submit.question.version, len(submit.question.tolerance)
        self.refuse_if_full(model, version, rows)
        future: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        self._requests[submit.id] = future
        try:
            self._send(submit)
            yield future
        except QueueFull as full:
            until = time.monotonic() + min(full.retry_after, LONGEST_REFUSAL)
            self._full[model, version] = _Full(rows, until, full)
            raise
        finally:
            del self._requests[submit.id]
            if not future.done():
                future.cancel()
            if future.cancelled():
                with suppress(EngineDied):
                    self._send(Cancel(submit.id))
            else:
                future.exception()  # which may be of no interest any more

    async def load(self, model: str) -> None:
        """Serve the versions of a model that the store holds now; return when they are.

        A version is loaded and tried out before it takes the place of another, which finishes what it has.

        Raises:
            LoadFailed: if the store has no such model, or a version of it cannot be loaded; the others are.
            EngineDied: as ``predict``; the next engine loads what the store holds.
        """
        refused = await self._change(Load(next(self._numbers), model))
        if refused:
            raise LoadFailed([f"{version}: {reason}" for version, reason in refused.items()])

    async def reload(self) -> dict[str, str]:
        """Serve what the store holds now, but for the models that were unloaded.

        Returns:
            ``name/version`` to the reason why it was refused; what was served of it before still is.

        Raises:
            EngineDied: as ``load``.
        """
        return await self._change(Load(next(self._numbers), None))

    async def unload(self, model: str) -> None:
        """Serve no version of a model until it is loaded again; what is in flight is finished.

        Raises:
            LoadFailed: if there is no such model to unload.
            EngineDied: as ``predict``.
        """
        await self._change(Unload(next(self._numbers), model))

    async def _change(self, message: Load | Unload) -> dict[str, str]:
        future: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._changes[message.id] = future
        try:
            self._send(message)
            return await future
        finally:
            del self._changes[message.id]

    async def forget(self, name: str) -> None:
        """Have the engine drop what another client asked for: that one has ended.

        Raises:
            EngineDied: if there is no engine.
        """
        self._send(Gone(name))

    async def look(self, timeout: float) -> State:
        """Ask the engine how it is.

        Args:
            timeout: seconds to wait.

        Raises:
            EngineDied: if there is no engine, or it dies now.
            TimeoutError: if it does not answer in time.
        """
        future: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._looks.append(future)
        try:
            self._send(Look())
            async with asyncio.timeout(timeout):
                return await future
        finally:
            self._looks.remove(future)

    def _send(self, message: ToEngine) -> None:
        """Send a message with all others of this turn of the event loop."""
        if self._socket is None:
            raise EngineDied("the engine process is not up")
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(Raw(self._encoder.encode(message)))  # one that cannot be encoded is its sender's business alone

    def _flush(self) -> None:
        messages, self._unsent = self._unsent, []
        if self._socket is not None and messages:  # else the engine went in the meantime, and whoever waits has heard of it
            self._socket.send(self._encoder.encode(messages), zmq.NOBLOCK)
            self._receive(self._socket)  # ZeroMQ's descriptor tells of an arrival once, and sending may have taken note of it

    def _receive(self, socket: "zmq.Socket[bytes]") -> bool:
        """Take in what has arrived; whether anything has."""
        has_heard = False
        while True:
            try:
                frame = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return has_heard
            has_heard = True
            try:
                messages = self._decoder.decode(frame)
            except msgspec.MsgspecError as error:
                log.error("the engine sent what are not messages", error=str(error))
                continue
            for message in messages:
                self._take(message)

    def _take(self, message: ToClient) -> None:
        match message:
            case State() as state:
                self.state = state
                for look in self._looks:
                    if not look.done():
                        look.set_result(state)
            case Answer(id, logits, iterations, residual, status, moments, margin, bound):
                array = _array(logits, len(status))
                self._finish(id, Computed(array, iterations, residual, list(status), moments, margin, bound))
            case Progress(id, logits, rows, iterations, residual):
                if watcher := self._watchers.get(id):
                    watcher.seen.append(Iteration(rows, iterations, residual, _array(logits, len(rows))))
                    watcher.news.set()
            case Refused(id, waiting_rows, max_waiting_rows, retry_after):
                self._finish(id, QueueFull(waiting_rows, max_waiting_rows, retry_after))
            case messages.NotServed(id):
                self._finish(id, NotServed("that version is not served any more"))
            case Changed(id, refused):
                change = self._changes.get(id)
                if change is not None and not change.done():
                    change.set_result(refused)
            case Failed(id, reason):
                change = self._changes.get(id)
                if change is not None and not change.done():
                    change.set_exception(LoadFailed([reason]))
                self._finish(id, RequestFailed(reason))

    def _finish(self, number: int, result: Computed | Exception) -> None:
        future = self._requests.get(number)
        if future is None or future.done():  # cancelled in the meantime
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _bytes(inputs: NDArray[np.generic]) -> bytes:
    return inputs.astype("<f4", copy=False).tobytes()


def _array(logits: bytes, rows: int) -> NDArray[np.float32]:
    return np.frombuffer(logits, dtype="<f4").reshape(rows, -1)
