"""EngineProcess: the loop around the engines, between the socket and the device."""

import itertools
import signal
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import numpy as np
import structlog
import zmq
from numpy.typing import NDArray

from app.engine.core import Engine
from app.engine.errors import QueueFull
from app.engine.job import Job
from app.engine.lifecycle import Changes, Lifecycle
from app.engine.messages import (
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
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
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
                self._tick()
            while self._lifecycle.busy:
                self._tick()
        finally:
            self._loading.shutdown(wait=True, cancel_futures=True)
            signal.set_wakeup_fd(-1)
            alarm.close()
            self._alarm.close()
            self._socket.close()
            self._context.term()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _receive(self) -> None:
        for _ in range(MOST_MESSAGES_A_TICK):
            try:
                client, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = self._decoder.decode(frames[0] if frames else b"")
            except msgspec.MsgspecError as error:
                log.warning("dropped what is not a message", error=str(error), frames=len(frames))
                continue
            if client in self._gone:  # its last words came after the news of its end
                continue
            match message:
                case Submit():
                    self._submit(client, message, frames[1:])
                case Cancel(id):
                    if (client, id) in self._jobs:
                        self._cancel(client, id)
                case Load():
                    self._load(client, message)
                case Unload(id, model):
                    if self._lifecycle.unload(model):
                        self._announce(client)
                        self._send(client, Changed(id, {}))
                    else:
                        self._send(client, Failed(id, f"{model}: expected a model that is served, got one that is not"))
                case Look():
                    self._clients.add(client)
                    self._send(client, self._state())
                case Gone(name):
                    self._forget(name.encode())

    def _submit(self, client: bytes, message: Submit, tensors: Sequence[bytes]) -> None:
        ticket = next(self._tickets)
        try:
            engine = self._lifecycle.find(message.model, message.version, message.fingerprint)
            if engine is None:
                self._send(client, self._state())
                self._send(client, NotServed(message.id))
                return
            if (client, message.id) in self._jobs:
                raise ValueError(f"id: {message.id} is in use")
            inputs = _rows(tensors, len(message.tolerance), engine.input_shape)
            engine.submit(
                Job(
                    ticket,
                    inputs,
                    message.tolerance,
                    message.max_iterations,
                    message.deadline,
                    solver=message.solver,
                    stop=message.stop,
                    session=message.session,
                    watched=message.watched,
                )
            )
        except QueueFull as full:
            self._send(client, Refused(message.id, full.waiting_rows, full.max_waiting_rows, full.retry_after))
        except ValueError as error:
            self._send(client, Failed(message.id, str(error)))
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
            self._send(each, state)

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
                self._send(
                    client, Failed(message.id, f"{message.model}: expected a model of the store, got one without a version")
                )
            else:
                refused = {f"{model}/{version}": refusal.reason for (model, version), refusal in changes.refused.items()}
                self._send(client, Changed(message.id, refused))

    def _tick(self) -> None:
        for engine in self._lifecycle.all_engines():
            if engine.busy:
                finished = engine.tick(time.monotonic())
                for progress in engine.take_progress():
                    client, id = self._requests[progress.id]
                    iteration = Progress(id, progress.rows, progress.iterations, progress.residual)
                    self._send(client, iteration, progress.logits.astype("<f4").tobytes())
                for job in finished:
                    self._answer(job)
        self._lifecycle.drop_drained()

    def _answer(self, job: Job) -> None:
        client, id = self._requests.pop(job.id)
        del self._jobs[client, id]
        if job.failure is not None:
            self._send(client, Failed(id, job.failure))
        else:
            answer = Answer(id, job.iterations, job.residual, job.status, job.moments, job.margin, job.bound)
            self._send(client, answer, job.logits.astype("<f4").tobytes())

    def _send(self, client: bytes, message: ToClient, *tensors: bytes) -> None:
        self._socket.send_multipart([client, msgspec.msgpack.encode(message), *tensors])

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


def _rows(tensors: Sequence[bytes], rows: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if len(tensors) != 1:
        raise ValueError(f"inputs: expected one tensor frame, got {len(tensors)}")
    expected = 4 * rows * int(np.prod(shape))
    if len(tensors[0]) != expected:
        raise ValueError(f"inputs: expected {expected} bytes, {rows} float32 rows of shape {list(shape)}, got {len(tensors[0])}")
    return np.frombuffer(tensors[0], dtype="<f4").reshape(rows, *shape)
