"""Engines: how an HTTP worker sends requests to the engines, whichever processes those are at the moment."""

import asyncio
import itertools
import time
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import msgspec
import structlog

from app.engine_client import errors
from app.engine_client.catalogue import Catalogue
from app.engine_client.errors import EngineUnavailable, LoadFailed, RequestFailed
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
    ServedVersion,
    State,
    ToClient,
    ToEngine,
    Unload,
    encode,
)

RECONNECT_SECONDS = 0.05
REFRESH_SECONDS = 1.0
"""Between two looks at what an engine serves."""
MAX_ITERATIONS_BUFFERED = 1024
"""Of a streamed request; if its client reads too slowly, the oldest are dropped."""
MAX_REJECTION_SECONDS = 0.1
"""How long a worker repeats an engine's rejection without asking it again."""

log = structlog.get_logger(__name__)


class Engines:
    """All engines of a server: one catalogue of models, and each request to the engine with the least work waiting.

    An asynchronous context manager: it connects, reconnects when an engine is restarted, and disconnects at the end. Every
    request ends exactly once, with its result or with an exception.

    Args:
        sockets: where each engine listens, or soon will.
        default_model: as in ``Catalogue``.
    """

    def __init__(self, sockets: Sequence[Path], default_model: str | None = None) -> None:
        self._engines = [EngineClient(socket) for socket in sockets]
        self._default_model = default_model
        self._catalogue: tuple[list[State], Catalogue] | None = None

    async def __aenter__(self) -> Self:
        for engine in self._engines:
            engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(engine.stop() for engine in self._engines))

    @property
    def states(self) -> dict[int, State]:
        """What each engine that is up last said, by its number."""
        return {number: engine.state for number, engine in enumerate(self._engines) if engine.up and engine.state}

    @property
    def catalogue(self) -> Catalogue:
        """The models that the engines serve; what was served last, while all of them are restarted.

        Raises:
            EngineUnavailable: until one has loaded its models for the first time.
        """
        states = list(self.states.values()) or [engine.state for engine in self._engines if engine.state]
        if not states:
            raise EngineUnavailable("the models are being loaded")
        if self._catalogue is None or self._catalogue[0] != states:
            self._catalogue = states, Catalogue(states, self._default_model)
        return self._catalogue[1]

    async def refresh(self, timeout: float) -> dict[int, State]:
        """Ask every engine for its state.

        Args:
            timeout: seconds to wait.

        Returns:
            The states of those that answered in time, by number.
        """
        await asyncio.gather(*(engine.get_state(timeout) for engine in self._engines), return_exceptions=True)
        return self.states

    async def wait_until_ready(self) -> None:
        """Return when at least one engine serves."""
        ready = [asyncio.ensure_future(engine.is_up.wait()) for engine in self._engines]
        try:
            await asyncio.wait(ready, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in ready:
                one.cancel()

    def raise_if_full(self, model: ServedVersion, rows: int = 1) -> None:
        """Reject at once what every engine would reject: a rejected request must cost less than an answered one.

        Args:
            model: of the request.
            rows: that the request has at least.

        Raises:
            QueueFull: if every engine has rejected as many rows or fewer, and has not had the time since to make room for them.
        """
        full = [engine.full(model, rows) for engine in self._engines if engine.up]
        if full and all(full):
            raise next(error for error in full if error)

    async def predict(self, request: Request) -> Result:
        """Have rows computed; cancelling the awaiting task drops them in the engine.

        Raises:
            NotServed: if no engine serves this load of that version; the catalogue is up to date then.
            QueueFull: if the queue has no room for the rows.
            EngineUnavailable: if no engine is up, or it exited before it answered.
            RequestFailed: if the rows cannot be computed.
        """
        async with self._choose(request).sent(request) as pending:
            return await pending.result

    async def stream(self, request: Request) -> AsyncGenerator[Iteration | Result, None]:
        """Have rows computed and yield each iteration, then the result. Closing the generator drops the rows.

        Raises what ``predict`` raises.
        """
        request.streamed = True
        async with self._choose(request).sent(request) as pending:
            pending.result.add_done_callback(lambda _: pending.arrived.set())
            while True:
                await pending.arrived.wait()
                pending.arrived.clear()
                while pending.iterations:
                    yield pending.iterations.popleft()
                if pending.result.done():
                    break
            yield pending.result.result()

    async def load(self, model: str) -> None:
        """Serve the versions of a model that the store holds now; return when they are served.

        Raises:
            LoadFailed: if the store has no such model, or a version of it cannot be loaded; the others are.
            EngineUnavailable: if no engine is up.
        """
        found = await self._change(Load, model)
        if refused := {version: reason for one in found for version, reason in one.items()}:
            raise LoadFailed([f"{version}: {reason}" for version, reason in refused.items()])

    async def unload(self, model: str) -> None:
        """Stop serving a model until it is loaded again; what is in flight is finished.

        Raises:
            LoadFailed: if no such model is served.
            EngineUnavailable: if no engine is up.
        """
        await self._change(Unload, model)

    async def _change(self, kind: type[Load] | type[Unload], model: str) -> list[dict[str, str]]:
        up = [engine for engine in self._engines if engine.up]
        if not up:
            raise EngineUnavailable("no engine is ready")
        results = await asyncio.gather(*(engine.change(kind, model) for engine in up), return_exceptions=True)
        if failed := next((one for one in results if isinstance(one, BaseException)), None):
            raise failed
        return [one for one in results if not isinstance(one, BaseException)]

    def _choose(self, request: Request) -> "EngineClient":
        """The engine with the least work waiting, of those that serve the load; a session has an engine of its own."""
        up = [engine for engine in self._engines if engine.up]
        if not up:
            raise EngineUnavailable("no engine is ready")
        if len(up) == 1:
            return up[0]
        serving = [engine for engine in up if engine.serves(request)] or up
        if request.session is not None:
            return serving[zlib.crc32(request.session.encode()) % len(serving)]
        return min(serving, key=lambda engine: engine.rows_in_flight)


@dataclass(eq=False)
class _Pending:
    result: asyncio.Future[Result]
    iterations: deque[Iteration] = field(default_factory=lambda: deque(maxlen=MAX_ITERATIONS_BUFFERED))
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class _Rejection:
    rows: int
    until: float
    error: errors.QueueFull


class EngineClient(asyncio.Protocol):
    """The connection to one engine.

    Args:
        socket: where it listens.

    Attributes:
        state: what it last said; None before the first time.
        is_up: set while it is connected and has said what it serves.
        rows_in_flight: rows that this process has sent and that are not answered.
    """

    def __init__(self, socket: Path) -> None:
        self.state: State | None = None
        self.is_up = asyncio.Event()
        self.rows_in_flight = 0
        self._socket = socket
        self._transport: asyncio.WriteTransport | None = None
        self._disconnected = asyncio.Event()
        self._numbers = itertools.count()
        self._requests: dict[int, _Pending] = {}
        self._changes: dict[int, asyncio.Future[dict[str, str]]] = {}
        self._states: list[asyncio.Future[State]] = []
        self._rejections: dict[tuple[str, int], _Rejection] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self.is_up.is_set()

    def start(self) -> None:
        """Connect, and again whenever the engine has been restarted."""
        self._task = asyncio.create_task(self._stay_connected())

    async def stop(self) -> None:
        """Disconnect."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._transport is not None:
            self._transport.abort()
            await self._disconnected.wait()

    def serves(self, request: Request) -> bool:
        """Whether the engine last said that it serves the load which a request means."""
        served = self.state.served if self.state else []
        return any(
            (one.model, one.version) == (request.model, request.version) and request.fingerprint in (None, one.fingerprint)
            for one in served
        )

    def full(self, model: ServedVersion, rows: int) -> errors.QueueFull | None:
        """The rejection that the engine would repeat now."""
        rejection = self._rejections.get((model.model, model.version))
        if rejection is None or rows < rejection.rows:
            return None
        if time.monotonic() < rejection.until:
            full = rejection.error
            return errors.QueueFull(full.waiting_rows, full.max_waiting_rows, full.retry_after)
        del self._rejections[model.model, model.version]
        return None

    @asynccontextmanager
    async def sent(self, request: Request) -> AsyncIterator[_Pending]:
        """Send a request; leaving before it is answered drops it in the engine."""
        pending = _Pending(asyncio.get_running_loop().create_future())
        self._requests[request.id] = pending
        self.rows_in_flight += request.rows
        try:
            self._send(request)
            yield pending
        except errors.QueueFull as full:
            until = time.monotonic() + min(full.retry_after, MAX_REJECTION_SECONDS)
            self._rejections[request.model, request.version] = _Rejection(request.rows, until, full)
            raise
        finally:
            del self._requests[request.id]
            self.rows_in_flight -= request.rows
            if not pending.result.done():
                pending.result.cancel()
            if pending.result.cancelled():
                with suppress(EngineUnavailable):
                    self._send(Cancel(request.id))
            else:
                pending.result.exception()  # retrieved, even if the client that waited for it has left

    async def change(self, kind: type[Load] | type[Unload], model: str) -> dict[str, str]:
        """Load or unload a model; return why which versions were refused."""
        future: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        self._changes[number] = future
        try:
            self._send(kind(number, model))
            return await future
        finally:
            del self._changes[number]

    async def get_state(self, timeout: float) -> State:
        """Ask the engine what it serves and what it has done.

        Raises:
            EngineUnavailable: if it is not up, or exits now.
            TimeoutError: if it does not answer within ``timeout`` seconds.
        """
        future: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._states.append(future)
        try:
            self._send(GetState())
            async with asyncio.timeout(timeout):
                return await future
        finally:
            self._states.remove(future)

    def _send(self, message: ToEngine) -> None:
        if self._transport is None:
            raise EngineUnavailable("no engine is ready")
        self._transport.write(encode([message]))

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.create_unix_connection(lambda: self, str(self._socket))
            except OSError:  # it is not up yet
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            while not self._disconnected.is_set():
                with suppress(EngineUnavailable, TimeoutError):
                    await self.get_state(REFRESH_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await self._disconnected.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is not a subclass
        self._decoder: FrameDecoder[ToClient] = FrameDecoder(ToClient)
        self._disconnected.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._rejections.clear()
        self.is_up.clear()
        self._disconnected.set()
        unanswered: list[asyncio.Future[Any]] = [
            *(pending.result for pending in self._requests.values()),
            *self._changes.values(),
            *self._states,
        ]
        for future in unanswered:
            if not future.done():
                future.set_exception(EngineUnavailable("the engine exited"))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._receive(message)
        except msgspec.MsgspecError as error:
            log.error("undecodable frame dropped", error=str(error))
            assert self._transport is not None
            self._transport.abort()

    def _receive(self, message: ToClient) -> None:
        match message:
            case Result(id=id):
                self._finish(id, message)
            case Iteration(id=id):
                if pending := self._requests.get(id):
                    pending.iterations.append(message)
                    pending.arrived.set()
            case State():
                self.state = message
                self.is_up.set()
                for future in self._states:
                    if not future.done():
                        future.set_result(message)
            case QueueFull(id, waiting_rows, max_waiting_rows, retry_after):
                self._finish(id, errors.QueueFull(waiting_rows, max_waiting_rows, retry_after))
            case NotServed(id):
                self._finish(id, errors.NotServed("the version is not served any more"))
            case ModelsChanged(id, refused):
                change = self._changes.get(id)
                if change is not None and not change.done():
                    change.set_result(refused)
            case Failed(id, reason):
                change = self._changes.get(id)
                if change is not None and not change.done():
                    change.set_exception(LoadFailed([reason]))
                self._finish(id, RequestFailed(reason))

    def _finish(self, id: int, result: Result | errors.EngineError) -> None:
        pending = self._requests.get(id)
        if pending is None or pending.result.done():  # cancelled in the meantime
            return
        if isinstance(result, Result):
            pending.result.set_result(result)
        else:
            pending.result.set_exception(result)
