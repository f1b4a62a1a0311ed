"""EngineProcess: the loop between the socket and the device."""

import itertools
import math
import selectors
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import structlog

from app.engine.backends.tf32 import FULL_PRECISION
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine.served_models import Changes, ServedModels, refusals
from app.engine_client import messages
from app.engine_client.errors import QueueFull
from app.engine_client.messages import Cancel, Failed, GetState, Load, ModelsChanged, NotServed, Request, Result, Unload
from app.supervisor.lifeline import HEARTBEAT_SECONDS, Lifeline

RECEIVE_BYTES = 2**20  # per client and tick, so that a flood of messages cannot keep the rows from being iterated
MAX_UNSENT_BYTES = 2**28  # of answers that a client does not read; it is dropped then

log = structlog.get_logger(__name__)


class _Client:
    """A connection to an HTTP worker, and what it is owed."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.decoder: messages.FrameDecoder[messages.ToEngine] = messages.FrameDecoder(messages.ToEngine)
        self.requests: dict[int, tuple[Scheduler, int]] = {}  # by the client's id: the scheduler, and the number there
        self.messages: list[messages.ToClient] = []  # for the next ``send``
        self.unsent = bytearray()

    def send(self) -> None:
        """Write as much as the socket takes; ``OSError`` if the client has disconnected."""
        if self.messages:
            self.unsent += messages.encode(self.messages)
            self.messages = []
        with suppress(BlockingIOError):
            while self.unsent:
                del self.unsent[: self.connection.send(self.unsent)]


class EngineProcess:
    """Serves models to any number of clients until SIGTERM; then it finishes what it has.

    A stale socket at ``path`` is replaced. Without ``poll_seconds`` the store is rescanned on SIGHUP only.
    """

    def __init__(self, path: Path, models: ServedModels, lifeline: Lifeline, poll_seconds: float | None) -> None:
        self._models = models
        self._lifeline = lifeline
        self._poll_seconds = math.inf if poll_seconds is None else poll_seconds
        self._loading = ThreadPoolExecutor(1, "loading")  # one, so that changes happen in the order in which they were requested
        self._changes: list[tuple[str | None, Future[Changes], Callable[[Changes], None]]] = []
        self._stopping = False
        self._rescan_requested = False
        self._next_beat, self._next_poll = 0.0, time.monotonic() + self._poll_seconds
        self._numbers = itertools.count()  # each client numbers its own requests
        self._running: dict[int, _Client] = {}  # which client waits for the request with a number
        self._clients: set[_Client] = set()
        self._received = memoryview(bytearray(RECEIVE_BYTES))
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()  # by signals and by the loading thread
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        for end in (self._woken, self._wake, self._listener):
            end.setblocking(False)

    def serve(self) -> None:
        """Receive, tick, answer; sleep while there is nothing to do."""
        for end in (self._listener, self._woken):
            self._selector.register(end, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._lifeline.report_ready()
        self._find_changes()  # what was published while the models were being loaded
        try:
            while not self._stopping or self._busy or any(client.unsent for client in self._clients):
                self._wait()
                self._keep_time()
                self._apply_changes()
                self._send()  # what is known already does not wait for the tick
                self._tick()
                self._send()
        finally:
            self._send()  # also what was computed before a device was lost
            signal.set_wakeup_fd(-1)
            self._loading.shutdown(wait=True, cancel_futures=True)

    def _on_signal(self, number: int, _: object) -> None:
        self._stopping |= number == signal.SIGTERM
        self._rescan_requested |= number == signal.SIGHUP

    def _wait(self) -> None:
        """Read what has arrived; if there are no rows to iterate, sleep until something arrives."""
        timeout = 0.0 if self._busy else max(0.0, min(self._next_beat, self._next_poll) - time.monotonic())
        ready = self._selector.select(timeout)
        for key, events in ready:
            if key.fileobj is self._woken:
                self._woken.recv(4096)
            elif key.fileobj is self._listener:
                with suppress(BlockingIOError):
                    client = _Client(self._listener.accept()[0])
                    self._clients.add(client)
                    self._selector.register(client.connection, selectors.EVENT_READ, client)
            elif events & selectors.EVENT_READ:
                self._receive(key.data, alone=len(ready) == 1)

    def _keep_time(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._lifeline.beat()
            self._next_beat = now + HEARTBEAT_SECONDS
        if now >= self._next_poll:
            self._next_poll = now + self._poll_seconds
            if not self._changes:
                self._find_changes()
        if self._rescan_requested:
            self._rescan_requested = False
            self._find_changes(react=_log_rescan)

    def _receive(self, client: _Client, *, alone: bool) -> None:
        try:
            size = client.connection.recv_into(self._received)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._drop(client)
            return
        try:
            received = client.decoder.feed(self._received[:size])
            for message in received:
                self._handle(client, message, alone=alone and len(received) == 1)
        except msgspec.MsgspecError as error:
            log.error("undecodable frame dropped", error=str(error))
            self._drop(client)

    def _handle(self, client: _Client, message: messages.ToEngine, *, alone: bool) -> None:
        match message:
            case Request():
                self._submit(client, message, alone=alone)
            case Cancel(id):
                self._cancel(client, id)
            case Load(_, model):
                self._models.allow(model)
                self._find_changes(model, partial(self._answer_load, client, message))
            case Unload(id, model):
                unloaded = self._models.unload(model)
                self._announce()
                client.messages.append(ModelsChanged(id, []) if unloaded else Failed(id, f"no model {model!r} is served"))
            case GetState():
                client.messages.append(self._models.state())

    def _submit(self, client: _Client, request: Request, *, alone: bool) -> None:
        scheduler = self._models.schedulers.get((request.model, request.version, request.fingerprint))
        if scheduler is None:
            client.messages += [self._models.state(), NotServed(request.id)]
            return
        number = next(self._numbers)
        try:
            if request.id in client.requests:
                raise ValueError(f"id: must be unique (got {request.id}, which is in use)")
            started = scheduler.live(request) if alone else None
            if isinstance(started, Result):
                client.messages.append(started)
                return
            scheduler.submit(RunningRequest(number, request, scheduler.input_shape), started)
        except QueueFull as full:
            client.messages.append(messages.QueueFull(request.id, full.waiting_rows, full.max_waiting_rows, full.retry_after))
        except ValueError as error:
            client.messages.append(Failed(request.id, str(error)))
        else:
            self._running[number] = client
            client.requests[request.id] = scheduler, number

    def _cancel(self, client: _Client, id: int) -> None:
        if id in client.requests:
            scheduler, number = client.requests.pop(id)
            del self._running[number]
            scheduler.cancel(number)

    def _drop(self, client: _Client) -> None:
        """Disconnect from a client and cancel what it waits for."""
        for id in list(client.requests):
            self._cancel(client, id)
        self._clients.discard(client)
        self._selector.unregister(client.connection)
        client.connection.close()

    def _find_changes(self, model: str | None = None, react: Callable[[Changes], None] = lambda _: None) -> None:
        """Have the loading thread scan the store for a model, or for all; ``react`` when what was found has taken effect."""
        future = self._loading.submit(self._models.find_changes, model)
        self._changes.append((model, future, react))
        future.add_done_callback(lambda _: self._wake.send(b"\0"))

    def _apply_changes(self) -> None:
        while self._changes and self._changes[0][1].done():
            model, future, react = self._changes.pop(0)
            changes = future.result()  # raises if the device is lost, and that is the end
            if self._models.apply(changes) or model is not None:
                self._announce()
            react(changes)

    def _answer_load(self, client: _Client, load: Load, changes: Changes) -> None:
        missing = Failed(load.id, f"no model {load.model!r} in the store")
        client.messages.append(ModelsChanged(load.id, refusals(changes.refused)) if changes.present else missing)

    def _announce(self) -> None:
        """Send every client what is served now."""
        state = self._models.state()
        for client in self._clients:
            client.messages.append(state)

    @property
    def _busy(self) -> bool:
        return any(scheduler.busy for scheduler in self._models.running)

    def _tick(self) -> None:
        for scheduler in self._models.running:
            if not scheduler.busy:
                continue
            with FULL_PRECISION:
                finished = scheduler.tick(time.monotonic())
            for request, iteration in scheduler.take_iterations():
                self._running[request.number].messages.append(iteration)
            for request in finished:
                client = self._running.pop(request.number)
                del client.requests[request.id]
                client.messages.append(request.answer())
        if self._models.draining:
            self._models.drop_drained()

    def _send(self) -> None:
        """Write at most one frame to each client."""
        for client in [client for client in self._clients if client.messages or client.unsent]:
            had_unsent = bool(client.unsent)
            try:
                client.send()
            except OSError:  # the end of the connection is also read
                client.unsent.clear()
                continue
            if len(client.unsent) > MAX_UNSENT_BYTES:
                log.error("client dropped", reason="it does not read its answers", unsent_bytes=len(client.unsent))
                self._drop(client)
            elif bool(client.unsent) != had_unsent:
                write = selectors.EVENT_WRITE if client.unsent else 0
                self._selector.modify(client.connection, selectors.EVENT_READ | write, client)


def _log_rescan(changes: Changes) -> None:
    log.info("model store rescanned", refused={str(one.version): one.reason for one in refusals(changes.refused)})
