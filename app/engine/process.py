"""EngineProcess: the loop around the engines, between the socket and the device."""

import itertools
import math
import signal
import socket
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import numpy as np
import structlog
import zmq
from numpy.typing import NDArray

from app.engine.request import Job
from app.engine.scheduler import Engine
from app.engine.served_models import Changes, Lifecycle
from app.engine_client.errors import QueueFull
from app.engine_client.messages import (
    Answer,
    Cancel,
    Changed,
    Counters,
    Failed,
    Gone,
    Load,
    Look,
    NotServed,
    Progress,
    Refused,
    State,
    Submit,
    ToClient,
    ToEngine,
    Unload,
)

MOST_MESSAGES_A_TICK = 256
"""So that a flood of messages cannot keep the rows from being iterated."""

log = structlog.get_logger(__name__)


class EngineProcess:
    """Serves the engines of a store to any number of clients, until SIGTERM; then it finishes what it has.

    Args:
        address: ZeroMQ address to bind.
        lifecycle: the engines, and what to say of them.
    """

    def __init__(self, address: str, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._loading = ThreadPoolExecutor(1, "loading")  # one, so that changes happen in the order they were asked for
        self._found: list[tuple[bytes, Load, Future[Changes]]] = []
        self._stopping = False
        self._tickets = itertools.count()  # clients number their requests, each for itself; the engines' numbers are these
        self._requests: dict[int, tuple[bytes, int]] = {}
        self._jobs: dict[tuple[bytes, int], tuple[Engine, int]] = {}
        self._clients: set[bytes] = set()
        self._gone: set[bytes] = set()
        self._said: defaultdict[bytes, list[ToClient]] = defaultdict(list)
        self._decoder = msgspec.msgpack.Decoder(list[ToEngine])
        self._encoder = msgspec.msgpack.Encoder()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # a ROUTER drops what is over the mark, and no answer may be dropped
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(address)

    def serve(self) -> None:
        """Receive, tick, answer; sleep while there is nothing to do."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        alarm, self._alarm = socket.socketpair()  # by way of this, signals and the loading thread wake the poller
        for end in (alarm, self._alarm):
            end.setblocking(False)
        poller.register(alarm, zmq.POLLIN)
        signal.set_wakeup_fd(self._alarm.fileno())
        signal.signal(signal.SIGTERM, self._stop)
        try:
            while not self._stopping:
                woken = dict(poller.poll(0 if self._lifecycle.busy else None))
                if alarm.fileno() in woken:
                    alarm.recv(4096)
                if self._socket in woken:
                    self._receive()
                self._apply_changes()
                self._send()  # what is known already does not wait for the tick
                self._tick()
                self._send()
            while self._lifecycle.busy:
                self._tick()
                self._send()
        finally:
            self._send()  # also what was computed before a device was lost
            self._loading.shutdown(wait=True, cancel_futures=True)
            signal.set_wakeup_fd(-1)
            alarm.close()
            self._alarm.close()
            self._socket.close()
            self._context.term()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _receive(self) -> None:
        received = 0
        while received < MOST_MESSAGES_A_TICK:
            try:
                client, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            received += 1
            try:
                messages = self._decoder.decode(b"".join(frames))
            except msgspec.MsgspecError as error:
                log.warning("dropped what are not messages", error=str(error), frames=len(frames))
                continue
            if client in self._gone:  # its last words came after the news of its end
                continue
            received += len(messages)
            for message in messages:
                self._take(client, message)

    def _take(self, client: bytes, message: ToEngine) -> None:
        match message:
            case Submit():
                self._submit(client, message)
            case Cancel(id):
                if (client, id) in self._jobs:
                    self._cancel(client, id)
            case Load():
                self._load(client, message)
            case Unload(id, model):
                if self._lifecycle.unload(model):
                    self._announce(client)
                    self._tell(client, Changed(id, {}))
                else:
                    self._tell(client, Failed(id, f"{model}: expected a model that is served, got one that is not"))
            case Look():
                self._clients.add(client)
                self._tell(client, self._state())
            case Gone(name):
                self._forget(name.encode())

    def _submit(self, client: bytes, message: Submit) -> None:
        ticket, asked = next(self._tickets), message.question
        try:
            engine = self._lifecycle.find(asked.model, asked.version, asked.fingerprint)
            if engine is None:
                self._tell(client, self._state())
                self._tell(client, NotServed(message.id))
                return
            if (client, message.id) in self._jobs:
                raise ValueError(f"id: {message.id} is in use")
            inputs = _rows(message.inputs, len(asked.tolerance), engine.input_shape)
            engine.submit(
                Job(
                    ticket,
                    inputs,
                    asked.tolerance,
                    asked.max_iterations,
                    asked.deadline,
                    solver=asked.solver,
                    stop=asked.stop,
                    session=asked.session,
                    watched=message.watched,
                )
            )
        except QueueFull as full:
            self._tell(client, Refused(message.id, full.waiting_rows, full.max_waiting_rows, full.retry_after))
        except ValueError as error:
            self._tell(client, Failed(message.id, str(error)))
        else:
            self._requests[ticket] = client, message.id
            self._jobs[client, message.id] = engine, ticket

    def _cancel(self, client: bytes, id: int) -> None:
        engine, ticket = self._jobs.pop((client, id))
        del self._requests[ticket]
        engine.cancel(ticket)

    def _forget(self, client: bytes) -> None:
        self._clients.discard(client)
        self._gone.add(client)
        for id in [id for asking, id in self._jobs if asking == client]:
            self._cancel(client, id)

    def _announce(self, client: bytes) -> None:
        """Tell every client what is served now, and this one even if it never looked."""
        state = self._state()
        for each in {client, *self._clients}:
            self._tell(each, state)

    def _load(self, client: bytes, message: Load) -> None:
        if message.model is not None:
            self._lifecycle.unloaded.discard(message.model)
        future = self._loading.submit(self._lifecycle.find_changes, message.model)
        self._found.append((client, message, future))
        future.add_done_callback(lambda _: self._alarm.send(b"\0"))

    def _apply_changes(self) -> None:
        while self._found and self._found[0][2].done():
            client, message, future = self._found.pop(0)
            changes = future.result()  # raises if the device is lost, and that is the end
            self._lifecycle.apply(changes)
            self._announce(client)
            if message.model is not None and not changes.present:
                self._tell(
                    client, Failed(message.id, f"{message.model}: expected a model of the store, got one without a version")
                )
            else:
                refused = {f"{model}/{version}": refusal.reason for (model, version), refusal in changes.refused.items()}
                self._tell(client, Changed(message.id, refused))

    def _tick(self) -> None:
        for engine in self._lifecycle.all_engines():
            if engine.busy:
                finished = engine.tick(time.monotonic())
                for progress in engine.take_progress():
                    client, id = self._requests[progress.id]
                    logits = progress.logits.astype("<f4").tobytes()
                    self._tell(client, Progress(id, logits, progress.rows, progress.iterations, progress.residual))
                for job in finished:
                    self._answer(job)
        self._lifecycle.drop_drained()

    def _answer(self, job: Job) -> None:
        client, id = self._requests.pop(job.id)
        del self._jobs[client, id]
        if job.failure is not None:
            self._tell(client, Failed(id, job.failure))
        else:
            logits = job.logits.astype("<f4").tobytes()
            self._tell(client, Answer(id, logits, job.iterations, job.residual, job.status, job.moments, job.margin, job.bound))

    def _tell(self, client: bytes, message: ToClient) -> None:
        """Have a client hear something when ``_send`` comes."""
        self._said[client].append(message)

    def _send(self) -> None:
        for client, messages in self._said.items():
            self._socket.send_multipart([client, self._encoder.encode(messages)])
        self._said.clear()

    def _state(self) -> State:
        counters = [
            Counters(
                model,
                version,
                engine.ticks,
                engine.step_evaluations,
                engine.iterations,
                engine.rows_ended,
                engine.batch_sizes,
                engine.active_rows,
                engine.waiting_rows,
                engine.slots,
            )
            for (model, version), engine in self._lifecycle.engines.items()
        ]
        return State(self._lifecycle.served, self._lifecycle.refused, counters, sorted(self._lifecycle.unloaded))


def _rows(inputs: bytes, rows: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    expected = 4 * rows * math.prod(shape)
    if len(inputs) != expected:
        raise ValueError(f"inputs: expected {expected} bytes, {rows} float32 rows of shape {list(shape)}, got {len(inputs)}")
    return np.frombuffer(inputs, dtype="<f4").reshape(rows, *shape)
