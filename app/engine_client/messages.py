"""The messages between the HTTP process and the engine process, all of them.

What goes over ZeroMQ is one frame at a time: the msgpack of a list of the structs below, in the order in which they were said. So
what a tick has to say to a client costs one system call, however many rows ended in it. Tensors are raw little-endian bytes in C
order. No pickle. Nothing here imports ``jfb``: it would bring torch, seconds and hundreds of megabytes, into the HTTP process.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Stop = Literal["tolerance", "label"]
"""What ends a row early: that it has come to its tolerance, or that, or that its label cannot change any more."""


class Question(msgspec.Struct, frozen=True):
    """What is asked about n rows: which model, and how each of them is to be solved."""

    model: str
    version: int
    tolerance: list[float]
    """One per row, positive."""
    max_iterations: list[int]
    """One per row, at least 1."""
    deadline: list[float | None]
    """One per row, in seconds of ``time.monotonic()``, which all processes of a machine share."""
    fingerprint: str | None = None
    """Which load of that version is meant, as ``ServedVersion`` has it; any if None."""
    solver: str | None = None
    """One of ``ServedVersion.solvers``; the model's own if None."""
    stop: Stop = "tolerance"
    """``label`` only where the version has a ``label_stop``."""
    session: str | None = None
    """The rows start where the last ones of this session ended, if there were as many."""


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """HTTP to engine: please compute these n rows."""

    id: int
    """Unique within the client; echoed in the answer."""
    question: Question
    inputs: bytes
    """float32 ``[n, *input_shape]``."""
    watched: bool = False
    """Whether ``Progress`` is to be sent after each iteration."""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """HTTP to engine: nobody waits for this request any more. Not answered."""

    id: int


class Load(msgspec.Struct, frozen=True, tag="load"):
    """HTTP to engine: serve what the store holds now. Answered with ``Changed``, or with ``Failed`` for an unknown model."""

    id: int
    model: str | None
    """All models but those that were unloaded if None."""


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    """HTTP to engine: serve no version of a model until it is loaded again; what is in flight is finished.

    Answered with ``Changed``, or with ``Failed`` for a model that is not there.
    """

    id: int
    model: str


class Look(msgspec.Struct, frozen=True, tag="look"):
    """HTTP to engine: are you there, and what have you done? Answered with ``State``."""


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """HTTP to engine: that other client has ended, and nobody waits for what it asked for. Not answered."""

    client: str
    """Its name; one that it had alone, and nobody will have again."""


class Moments(msgspec.Struct):
    """Where the time of a request went, in seconds of ``time.monotonic()``; None for what did not happen.

    On a device that works by itself, a moment is when the host had handed over the work, not when that was done.
    """

    submitted: float | None = None
    admitted: float | None = None
    """The first of its rows left the queue."""
    injected: float | None = None
    """The injection of those had been computed."""
    ended: float | None = None
    """The last of its rows had ended."""
    read_out: float | None = None
    """The logits of those had been computed."""


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """Engine to HTTP: all rows of a request have ended."""

    id: int
    logits: bytes
    """float32 ``[n, classes]``; NaN for rows without an iteration."""
    iterations: list[int]
    """0 for a row whose deadline passed while it waited."""
    residual: list[float]
    """NaN or infinity for rows that diverged, NaN for rows without an iteration."""
    status: Sequence[str]
    """The words of ``jfb.Status``."""
    moments: Moments
    margin: list[float] | None = None
    """Of requests with label stops, one per row: by how much the label's logit leads, as ``jfb.label_stop`` has it."""
    bound: list[float] | None = None
    """Of the same: by how much that lead can still shrink; infinite where nothing is known yet, NaN without an iteration."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Engine to HTTP: an iteration of a watched request."""

    id: int
    logits: bytes
    """float32 ``[m, classes]``."""
    rows: list[int]
    """Those that have a slot, m of them."""
    iterations: list[int]
    residual: list[float]
    """Of that iteration; NaN or infinity for a row that diverged."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Engine to HTTP: the queue is full; nothing was computed."""

    id: int
    waiting_rows: int
    max_waiting_rows: int
    retry_after: float
    """Seconds after which the queue should have room, from measured throughput."""


class NotServed(msgspec.Struct, frozen=True, tag="not_served"):
    """Engine to HTTP: nothing was computed, as that version is not served, or not the load of it that was asked for.

    A ``State`` goes before, which says what is served.
    """

    id: int


class Changed(msgspec.Struct, frozen=True, tag="changed"):
    """Engine to HTTP: what was to be loaded or unloaded is. A ``State`` goes before, which says what is served."""

    id: int
    refused: dict[str, str]
    """``name/version`` to the reason, of the models that were looked at."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Engine to HTTP: this request could not be computed; others are not affected."""

    id: int
    reason: str


class LabelStop(msgspec.Struct, frozen=True):
    """What a request with ``stop: label`` may count on: rows end as soon as their label cannot change any more."""

    kind: Annotated[
        Literal["estimate", "guarantee"],
        Meta(description="guarantee: the network contracts by construction; estimate: calibrated on held-out data"),
    ]
    solvers: Annotated[tuple[str, ...], Meta(description="those that it goes with")]
    tolerance: Annotated[float, Meta(description="that ends the other rows, unless the request says otherwise")]
    inputs: Annotated[int, Meta(description="held-out inputs that the estimate was tested on; null for a guarantee")] | None = (
        None
    )
    differing: (
        Annotated[float, Meta(ge=0, le=1, description="share of them whose label was not that of the exact fixed point")] | None
    ) = None
    iterations: Annotated[float, Meta(description="mean iterations of them")] | None = None


class ServedVersion(msgspec.Struct, frozen=True):
    """One version of one model, as the engine holds it."""

    model: str
    version: int
    config: str
    """``config.json``, validated and with what it leaves out filled in (``ModelConfig.model_dump_json()``)."""
    fingerprint: str = ""
    """Differs from that of an earlier load of this version, if its folder was replaced in the meantime."""
    solvers: tuple[str, ...] = ()
    """Those that a request may name."""
    label_stop: LabelStop | None = None
    """None if a request may not ask for label stops."""


class Counters(msgspec.Struct, frozen=True):
    """What one version has done since its engine started; every number only grows, but for the rows and slots of now."""

    model: str
    version: int
    ticks: int
    step_evaluations: int
    """Rows summed over the ticks: the work that was done."""
    iterations: int
    """Iterations summed over the rows that ended, cancelled ones included: the work that was asked for."""
    rows_ended: int
    batch_sizes: list[int]
    """Ticks with at most 1, 2, 4, 8, ... rows, and more than half as many."""
    active_rows: int
    waiting_rows: int
    slots: int


class State(msgspec.Struct, frozen=True, tag="state"):
    """Engine to HTTP: the answer to ``Look``. An engine that answers has loaded its models."""

    served: list[ServedVersion]
    refused: dict[str, str]
    """``name/version`` to the reason why it was not loaded; what was loaded of that version before is still served."""
    counters: list[Counters]
    unloaded: list[str] = []
    """Models that are not served because somebody unloaded them."""


ToEngine = Submit | Cancel | Load | Unload | Look | Gone
ToClient = Answer | Progress | Refused | NotServed | Changed | Failed | State
