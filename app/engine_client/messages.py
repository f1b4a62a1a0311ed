"""Messages between the HTTP workers and the engines.

A frame on their Unix stream socket is a length (four bytes, little-endian) and that many bytes of msgpack: a list of the structs
below, in the order in which they were sent. Tensors are raw little-endian bytes in C order. No pickle.
"""

import itertools
import struct
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from jfb.config import ModelConfig
from jfb.store import ModelVersion

MESSAGE_IDS = itertools.count()  # unique within the HTTP worker
Stop = Literal["tolerance", "label"]
"""What ends a row early: ``tolerance`` is the residual; ``label`` also ends it once its label cannot change any more."""


class Request(Struct, tag="request"):
    """HTTP to engine: compute n rows. Answered with ``Result``, ``QueueFull``, ``NotServed`` or ``Failed``.

    The HTTP worker has validated it; the engine checks only what would let one client harm another.
    """

    model: str
    version: int
    inputs: bytes  # float32 `[n, *input_shape]`
    tolerance: list[float]  # one per row, positive and finite
    max_iterations: list[int]  # one per row, at least 1
    deadline: list[float | None]  # one per row, in seconds of `time.monotonic()`, which all processes of a machine share
    fingerprint: str | None = None  # which load of that version is meant (`ServedVersion.fingerprint`); None accepts any
    solver: str | None = None  # one of `ServedVersion.solvers`; None is the model's own
    stop: Stop = "tolerance"  # `label` only where the version has a `label_stop`
    session: str | None = None  # the rows start where the last rows of this session ended, if there were as many
    streamed: bool = False  # whether the engine sends an `Iteration` after each iteration
    with_states: bool = False  # whether those have states
    client: str = ""  # who sent it, as an opaque text; waiting rows leave the queue fairly by client
    id: int = msgspec.field(default_factory=MESSAGE_IDS.__next__)

    @property
    def rows(self) -> int:
        return len(self.tolerance)


class Cancel(Struct, frozen=True, tag="cancel"):
    """HTTP to engine: drop the rows of a request. Not answered."""

    id: int


class Load(Struct, frozen=True, tag="load"):
    """HTTP to engine: serve what the store holds of a model now. Answered with ``ModelsChanged`` or ``Failed``."""

    id: int
    model: str


class Unload(Struct, frozen=True, tag="unload"):
    """HTTP to engine: stop serving a model until it is loaded again; what is in flight is finished. Answered as ``Load``."""

    id: int
    model: str


class GetState(Struct, frozen=True, tag="get_state"):
    """HTTP to engine: send a ``State``."""


class Timings(Struct):
    """When the engine did what for a request, in seconds of ``time.monotonic()``; None for what did not happen.

    On a device that works asynchronously, this is when the host had queued the work, not when the device had done it.
    """

    submitted: float | None = None
    admitted: float | None = None  # the first of its rows left the queue
    injected: float | None = None
    ended: float | None = None  # the last of its rows had ended
    read_out: float | None = None

    def phases(self) -> dict[str, tuple[float, float]]:
        """Start and end of each phase that the request went through: queue, inject, iterate, readout."""
        times = (self.submitted, self.admitted, self.injected, self.ended, self.read_out)
        phases = zip(("queue", "inject", "iterate", "readout"), times[:-1], times[1:], strict=True)
        return {phase: (start, end) for phase, start, end in phases if start is not None and end is not None}


class _Rows(Struct, frozen=True):
    id: int
    logits: bytes  # float32 `[n, classes]`; NaN for rows without an iteration, unless a learned start was read out
    iterations: list[int]
    residual: list[float]  # NaN or infinity for rows that diverged, NaN for rows without an iteration

    def logits_array(self) -> NDArray[np.float32]:
        """The logits, shape ``[n, classes]``, read-only."""
        return np.frombuffer(self.logits, "<f4").reshape(len(self.iterations), -1)


class Result(_Rows, frozen=True, tag="result"):
    """Engine to HTTP: all rows of a request have ended."""

    status: Sequence[str]  # values of `jfb.Status`
    timings: Timings
    margin: list[float] | None = None
    """Of requests with label stops, one per row: the lead of the label's logit (``jfb.label_stop``)."""
    bound: list[float] | None = None
    """Of the same: how far that lead can still shrink; infinite while unknown, NaN without an iteration."""

    @property
    def answered(self) -> bool:
        """Whether any row had an iteration, or an answer without one."""
        return any(self.iterations) or bool(np.isfinite(self.logits_array()).any())


class Magnitude(Struct, frozen=True):
    """The magnitude of a state at each of its positions."""

    height: int
    width: int
    peak: float  # the largest
    shares: bytes  # uint8 `[height, width]`, in 255ths of the largest


class Iteration(_Rows, frozen=True, tag="iteration"):
    """Engine to HTTP: one iteration of the n rows of a streamed request that have a slot."""

    rows: list[int]
    states: list[Magnitude | None] | None = None  # one per row of a traced request; None where there is none to send


class QueueFull(Struct, frozen=True, tag="queue_full"):
    """Engine to HTTP: the request was rejected; nothing was computed."""

    id: int
    waiting_rows: int
    max_waiting_rows: int
    retry_after: float  # in seconds, from the measured throughput


class NotServed(Struct, frozen=True, tag="not_served"):
    """Engine to HTTP: this version, or this load of it, is not served; nothing was computed. A ``State`` precedes it."""

    id: int


class Refusal(Struct, frozen=True):
    """A version that could not be loaded, and why."""

    version: ModelVersion
    reason: str


class ModelsChanged(Struct, frozen=True, tag="models_changed"):
    """Engine to HTTP: the load or unload is done. A ``State`` precedes it."""

    id: int
    refused: list[Refusal]  # versions of the model that was to be loaded


class Failed(Struct, frozen=True, tag="failed"):
    """Engine to HTTP: this request could not be computed; others are not affected."""

    id: int
    reason: str


class LabelStop(Struct, frozen=True):
    """What a request with ``stop: label`` may rely on; an estimate was tested on held-out inputs."""

    kind: Literal["estimate", "guarantee"]
    """``guarantee``: the network contracts by construction; ``estimate``: calibrated on held-out data."""
    solvers: tuple[str, ...]
    tolerance: float  # the default tolerance of such requests
    inputs: int | None = None  # how many held-out inputs; None for a guarantee
    differing: float | None = None  # share of them whose label was not that of the exact fixed point, in [0, 1]
    iterations: float | None = None  # their mean


class ServedVersion(Struct, frozen=True, dict=True):
    """One version of one model, as an engine serves it."""

    model: str
    version: int
    config_json: str  # `config.json`, validated and complete (`ModelConfig.model_dump_json()`)
    fingerprint: str = ""  # changes when the version's folder is replaced and loaded again
    published: float = 0.0  # `jfb.store.publication_time`
    solvers: tuple[str, ...] = ()
    label_stop: LabelStop | None = None

    @cached_property
    def config(self) -> ModelConfig:
        return ModelConfig.model_validate_json(self.config_json)


class Counters(Struct, frozen=True):
    """What one version has done since its engine started, by its scheduler's attributes; all but the last three only grow."""

    model: str
    version: int
    ticks: int
    step_evaluations: int  # rows summed over the ticks: the work that was done
    iterations: int  # iterations summed over the rows that ended, cancelled ones included: the work that was requested
    wasted_iterations: int  # of free slots, and of rows that had ended and were computed with the others
    rows_ended: int
    batch_sizes: list[int]  # ticks with at most 1, 2, 4, 8, ... rows, and more than half as many
    active_rows: int
    waiting_rows: int
    slots: int


class State(Struct, frozen=True, tag="state"):
    """Engine to HTTP: what it serves and what it has done. An engine that answers has loaded its models."""

    served: list[ServedVersion]
    refused: list[Refusal]  # an earlier load of such a version may still be served
    counters: list[Counters]
    unloaded: list[str] = []
    aliases: dict[str, dict[str, int]] = {}  # by model; numbers of versions, which may not be served


ToEngine = Request | Cancel | Load | Unload | GetState
ToClient = Result | Iteration | QueueFull | NotServed | ModelsChanged | Failed | State

_LENGTH = struct.Struct("<I")
_ENCODER = msgspec.msgpack.Encoder()

Message = TypeVar("Message")


def encode(messages: Sequence[Struct | msgspec.Raw]) -> bytes:
    """One frame of messages."""
    frame = _ENCODER.encode(messages)
    return _LENGTH.pack(len(frame)) + frame


class FrameDecoder(Generic[Message]):
    """Splits a stream of bytes into messages of a kind, ``ToEngine`` or ``ToClient``."""

    def __init__(self, kind: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[kind])
        self._rest = b""

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """The messages that ``data`` completes; after a ``msgspec.MsgspecError`` the stream cannot be read any further."""
        found: list[Message] = []
        view = memoryview(self._rest + data if self._rest else data)
        start = 0
        while len(view) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(view, start)[0]
            if len(view) < end:
                break
            found += self._decoder.decode(view[start + _LENGTH.size : end])
            start = end
        self._rest = bytes(view[start:])
        return found
