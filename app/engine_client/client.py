"""Engines: how an HTTP worker sends requests to the engines, whichever processes those are at the moment."""

import asyncio
import time
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

import msgspec
import structlog

from app.engine_client import messages
from app.engine_client.catalogue import Catalogue
from app.engine_client.errors import EngineUnavailable, LoadFailed, NotServed, QueueFull, RequestFailed
from app.engine_client.messages import MESSAGE_IDS, Iteration, Load, Request, Result, ServedVersion, State, Unload
from jfb.store import ModelVersion

RECONNECT_SECONDS = 0.05
REFRESH_SECONDS = 1.0  # between two looks at what an engine serves
MAX_ITERATIONS_BUFFERED = 1024  # of a streamed request; if its client reads too slowly, the oldest are dropped
MAX_REJECTION_SECONDS = 0.1  # how long a worker repeats an engine's rejection without asking it again
MAX_REJECTIONS = 1024  # remembered ones, after which those that have expired are forgotten

log = structlog.get_logger(__name__)

Rejections = dict[tuple["EngineClient", str, int, str], tuple[int, float, messages.QueueFull]]
"""By engine, model, version and client: how many rows, until when it is repeated, and the rejection."""


class Engines:
    """All engines of a server: one catalogue of models, and each request to the engine with the least work waiting.

    An asynchronous context manager: it connects, reconnects when an engine is restarted, and disconnects at the end. Every
    request ends exactly once, with its result or with an exception.

    Attributes:
        found: what ``find`` has found since an engine last said what it serves; to be read in its place, because this is faster.
        rejections: of the engines, those that ``raise_if_full`` repeats; some may have expired.
    """

    def __init__(self, sockets: Sequence[Path], default_model: str | None = None) -> None:
        self.found: dict[tuple[str | None, int | str | None], ServedVersion] = {}
        self.rejections: Rejections = {}
        self._engines = [EngineClient(socket, self.rejections, self._forget) for socket in sockets]
        self._default_model = default_model
        self._catalogue: Catalogue | None = None

    async def __aenter__(self) -> Self:
        for engine in self._engines:
            engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(engine.stop() for engine in self._engines))

    @property
    def states(self) -> dict[int, State]:
        """What each engine that is up last said, by its number."""
        return {number: engine.state for number, engine in enumerate(self._engines) if engine.is_up and engine.state}

    @property
    def catalogue(self) -> Catalogue:
        """The models that the engines serve, or served before all of them were restarted; until then ``EngineUnavailable``."""
        states = list(self.states.values()) or [engine.state for engine in self._engines if engine.state]
        if not states:
            raise EngineUnavailable("the models are being loaded")
        if self._catalogue is None:
            self._catalogue = Catalogue(states, self._default_model)
        return self._catalogue

    def find(self, name: str | None, version: int | str | None = None) -> ServedVersion:
        """As ``Catalogue.find``, and remember it in ``found``."""
        found = self.found[name, version] = self.catalogue.find(name, version)
        return found

    def _forget(self) -> None:
        """An engine serves something else, or has exited."""
        self._catalogue = None
        self.found.clear()

    async def refresh(self, timeout: float) -> dict[int, State]:
        """Ask every engine for its state, waiting ``timeout`` seconds at most; return ``states``."""
        await asyncio.gather(*(engine.refresh(timeout) for engine in self._engines))
        return self.states

    async def wait_until_ready(self) -> None:
        """Return when at least one engine serves."""
        while not self.states:
            await asyncio.sleep(RECONNECT_SECONDS)

    def raise_if_full(self, model: ServedVersion, client: str, rows: int = 1) -> None:
        """``QueueFull`` if every engine has just rejected that many rows of a client: that must cost less than an answer."""
        rejections = [engine.rejection(model, client, rows) for engine in self._engines if engine.is_up]
        if rejections and all(rejections):
            raise _queue_full(next(one for one in rejections if one))

    async def predict(self, request: Request) -> Result:
        """Have rows computed; cancelling the awaiting task drops them in the engine.

        Raises ``NotServed``, and the catalogue is up to date then, ``QueueFull``, ``EngineUnavailable`` or ``RequestFailed``.
        """
        return cast(Result, await self._choose(request).answer(request))

    async def stream(self, request: Request) -> AsyncGenerator[Iteration | Result, None]:
        """As ``predict``, but yield each iteration, then the result. Closing the generator drops the rows."""
        request.streamed = True
        engine, pending = self._choose(request), _Streamed(request)
        pending.answer.add_done_callback(lambda _: pending.arrived.set())
        engine.send(pending)
        try:
            while True:
                await pending.arrived.wait()
                pending.arrived.clear()
                while pending.iterations:
                    yield pending.iterations.popleft()
                if pending.answer.done():
                    break
            yield pending.answer.result()
        finally:
            engine.end(pending)

    async def load(self, model: str) -> None:
        """Serve what the store holds of a model; ``LoadFailed`` if that is nothing, or a version cannot be loaded; others are."""
        if refused := await self._change(Load, model):
            raise LoadFailed("; ".join(f"{version}: {reason}" for version, reason in sorted(refused.items())))

    async def unload(self, model: str) -> None:
        """Stop serving a model until it is loaded again; what is in flight is finished. ``LoadFailed`` if none is served."""
        await self._change(Unload, model)

    async def _change(self, kind: type[Load] | type[Unload], model: str) -> dict[ModelVersion, str]:
        refused: dict[ModelVersion, str] = {}
        changes = [engine.answer(kind(next(MESSAGE_IDS), model)) for engine in self._up()]
        for result in await asyncio.gather(*changes, return_exceptions=True):  # raise only when all have answered
            if isinstance(result, BaseException):
                raise result
            refused |= {one.version: one.reason for one in result}
        return refused

    def _up(self) -> list["EngineClient"]:
        if up := [engine for engine in self._engines if engine.is_up]:
            return up
        raise EngineUnavailable("no engine is ready")

    def _choose(self, request: Request) -> "EngineClient":
        """The engine with the least work waiting, of those that serve the load; a session has an engine of its own."""
        up = self._up()
        if len(up) == 1:
            return up[0]
        serving = [engine for engine in up if engine.serves(request)] or up
        if request.session is not None:
            return serving[zlib.crc32(request.session.encode()) % len(serving)]
        return min(serving, key=lambda engine: engine.rows_in_flight)


class _Pending:
    """A message that is to be answered."""

    def __init__(self, message: Request | Load | Unload) -> None:
        self.message = message
        self.rows = message.rows if isinstance(message, Request) else 0
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        """A ``Result``; of a load or unload the versions that were refused, with the reasons."""


class _Streamed(_Pending):
    """A request whose iterations are sent, too."""

    def __init__(self, message: Request) -> None:
        super().__init__(message)
        self.iterations: deque[Iteration] = deque(maxlen=MAX_ITERATIONS_BUFFERED)
        self.arrived = asyncio.Event()


class EngineClient(asyncio.Protocol):
    """The connection to the engine that listens on a socket."""

    def __init__(self, socket: Path, rejections: Rejections, on_change: Callable[[], None]) -> None:
        self.state: State | None = None  # what the engine last said
        self._unsent: list[messages.ToEngine] = []
        self.is_up = False  # whether it is connected and has said what it serves
        self.rows_in_flight = 0  # rows that this process has sent and that are not answered
        self._socket = socket
        self._transport: asyncio.WriteTransport | None = None
        self._disconnected = asyncio.Event()
        self._state_arrived = asyncio.Event()
        self._pending: dict[int, _Pending] = {}
        self._rejections = rejections  # of all engines
        self._on_change = on_change  # of ``state`` and ``is_up``

    def start(self) -> None:
        """Connect, and again whenever the engine has been restarted."""
        self._task: asyncio.Task[None] = asyncio.create_task(self._stay_connected())

    async def stop(self) -> None:
        """Disconnect."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self._transport is not None:
            self._transport.abort()
            await self._disconnected.wait()

    def serves(self, request: Request) -> bool:
        """Whether the engine last said that it serves the load which a request means."""
        return self.state is not None and any(
            (one.model, one.version) == (request.model, request.version) and request.fingerprint in (None, one.fingerprint)
            for one in self.state.served
        )

    def rejection(self, model: ServedVersion, client: str, rows: int) -> messages.QueueFull | None:
        """The rejection that the engine would repeat now."""
        rejected_rows, until, rejection = self._rejections.get((self, model.model, model.version, client), (0, 0.0, None))
        return rejection if rows >= rejected_rows and time.monotonic() < until else None

    async def answer(self, message: Request | Load | Unload) -> Any:
        """Send a message and return its answer: see ``_Pending.answer``."""
        pending = _Pending(message)
        self.send(pending)
        try:
            return await pending.answer
        finally:
            self.end(pending)

    def send(self, pending: _Pending) -> None:
        """Send a message; ``end`` must follow."""
        self._send(pending.message)
        self._pending[pending.message.id] = pending
        self.rows_in_flight += pending.rows

    def end(self, pending: _Pending) -> None:
        """Wait for an answer no more; a request that has none is dropped in the engine."""
        del self._pending[pending.message.id]
        self.rows_in_flight -= pending.rows
        pending.answer.cancel()
        if pending.answer.cancelled():
            with suppress(EngineUnavailable):
                self._send(messages.Cancel(pending.message.id))
        else:
            pending.answer.exception()  # retrieved, even if the client that waited for it has left

    async def refresh(self, timeout: float) -> None:
        """Ask for the state; return when it has arrived, the engine has exited, or ``timeout`` seconds have passed."""
        self._state_arrived.clear()
        with suppress(EngineUnavailable, TimeoutError):
            self._send(messages.GetState())
            async with asyncio.timeout(timeout):
                await self._state_arrived.wait()

    def _send(self, message: messages.ToEngine) -> None:
        if self._transport is None:
            raise EngineUnavailable("no engine is ready")
        if not self._unsent:
            if not self._pending:  # the engine waits for it
                self._transport.write(messages.encode([message]))
                return
            asyncio.get_running_loop().call_soon(self._flush)  # along with whatever else this turn of the event loop sends
        self._unsent.append(message)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None and unsent:
            self._transport.write(messages.encode(unsent))

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.create_unix_connection(lambda: self, str(self._socket))
            except OSError:  # it is not up yet
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            while not self._disconnected.is_set():
                await self.refresh(REFRESH_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await self._disconnected.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is not a subclass
        self._decoder: messages.FrameDecoder[messages.ToClient] = messages.FrameDecoder(messages.ToClient)
        self._disconnected.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._unsent = []
        for key in [key for key in self._rejections if key[0] is self]:
            del self._rejections[key]
        self.is_up = False
        self._on_change()
        self._disconnected.set()
        self._state_arrived.set()
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(EngineUnavailable("the engine exited"))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._receive(message)
        except msgspec.MsgspecError as error:
            log.error("undecodable frame dropped", error=str(error))
            assert self._transport is not None
            self._transport.abort()

    def _receive(self, message: messages.ToClient) -> None:
        if isinstance(message, State):
            self.state = message
            self.is_up = True
            self._on_change()
            self._state_arrived.set()
            return
        pending = self._pending.get(message.id)
        if pending is None or pending.answer.done():  # cancelled in the meantime
            return
        match message:
            case Result():
                pending.answer.set_result(message)
            case Iteration():
                assert isinstance(pending, _Streamed)
                pending.iterations.append(message)
                pending.arrived.set()
            case messages.ModelsChanged():
                pending.answer.set_result(message.refused)
            case messages.QueueFull():
                assert isinstance(pending.message, Request)
                now, rejected = time.monotonic(), pending.message
                if len(self._rejections) >= MAX_REJECTIONS:
                    for key in [key for key, (_, until, _) in self._rejections.items() if until <= now]:
                        del self._rejections[key]
                until = now + min(message.retry_after, MAX_REJECTION_SECONDS)
                self._rejections[self, rejected.model, rejected.version, rejected.client] = rejected.rows, until, message
                pending.answer.set_exception(_queue_full(message))
            case messages.NotServed():
                pending.answer.set_exception(NotServed("the version is not served any more"))
            case messages.Failed():
                failed = RequestFailed if isinstance(pending.message, Request) else LoadFailed
                pending.answer.set_exception(failed(message.reason))


def _queue_full(message: messages.QueueFull) -> QueueFull:
    return QueueFull(message.waiting_rows, message.max_waiting_rows, message.retry_after)
