"""JSON of the native API: pydantic models, and for speed msgspec's ``PredictRequest``."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, defstruct
from pydantic import MISSING, BaseModel, ConfigDict, Field

from jfb.config import InputSpec

EVENT_STREAM = "text/event-stream"
EndStatus = Literal["converged", "label_stable", "max_iterations", "deadline", "diverged"]
MAX_SESSION_CHARACTERS = 128
MAX_TRACED_ROWS = 8
MIN_TOLERANCE, MAX_TOLERANCE = 1.1754943508222875e-38, 3.4028234663852886e38
"""The engine computes in float32, where smaller numbers are lost and larger ones infinite."""
MAX_DEADLINE_MS = 3_600_000
"""One hour. A deadline moves a row ahead in the queue, so it must mean something."""
Number = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
BoundKind = Literal["estimate", "guarantee"]
Lists = TypeVar("Lists")


def _meta(description: str, **schema: Any) -> Meta:
    return Meta(description=description, extra_json_schema=schema)


def _per_row(description: str, **value: Any) -> Meta:
    lists = {"type": "array", "items": value}
    return _meta(f"{description}; one value for all rows, or a list of one per row.", anyOf=[value, lists])


TOLERANCE = _per_row("Stop when the residual is at most this", type="number", minimum=MIN_TOLERANCE, maximum=MAX_TOLERANCE)
CAP = _per_row("Stop after this many iterations", type="integer", minimum=1)
DEADLINE = _per_row(
    "Stop after this time, from the arrival of the request", type="number", exclusiveMinimum=0, maximum=MAX_DEADLINE_MS
)
STOP = _meta(
    "label also ends a row once its label cannot change; not every model offers it.", type="string", enum=["tolerance", "label"]
)
SESSION = _meta(
    "Start where the last rows of this session ended, if there were as many; for inputs that change slowly.",
    anyOf=[{"type": "string", "minLength": 1, "maxLength": MAX_SESSION_CHARACTERS}, {"type": "null"}],
)
TRACE = _meta(
    f"state adds the state to the events of a streamed request of at most {MAX_TRACED_ROWS} rows (see IterationEvent).",
    type="string",
    enum=["state"],
)


class PredictParameters(Struct, forbid_unknown_fields=True, kw_only=True):
    """How the rows of a request are solved; the model's own defaults hold for what is left out.

    The values are as the client sent them; ``inference.decoding.build_request`` validates them.
    """

    tolerance: Annotated[Any, TOLERANCE] = UNSET
    max_iterations: Annotated[Any, CAP] = UNSET
    deadline_ms: Annotated[Any, DEADLINE] = UNSET
    solver: Annotated[Any, _meta("One of the model's solvers.", type="string")] = UNSET
    stop: Annotated[Any, STOP] = UNSET
    session: Annotated[Any, SESSION] = UNSET


class StreamParameters(PredictParameters):
    """The same, and what the events of a streamed request hold."""

    trace: Annotated[Any, TRACE] = UNSET


class PredictRequest(StreamParameters, Generic[Lists]):
    """Rows to predict: either inputs or images."""

    inputs: Annotated[
        Lists | UnsetType, _meta("Nested lists of shape [n, *input shape]; see GET /models.", type="array", minItems=1, items={})
    ] = UNSET
    images: Annotated[
        Any, _meta("PNG or JPEG files in base64, or data: URIs of them.", type="array", minItems=1, items={"type": "string"})
    ] = UNSET


RawPredictRequest = defstruct(
    "RawPredictRequest",
    [(name, Raw | UnsetType, UNSET) for name in PredictRequest.__struct_fields__],
    forbid_unknown_fields=True,
    kw_only=True,
)
"""A ``PredictRequest`` whose values are still JSON, so that each is decoded by what it may hold."""


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Stability(Model):
    """How certain the label of a row is: it cannot change any more where the margin exceeds the bound."""

    margin: NonNegative | None = Field(description="By how much the label's logit leads that of the closest rival.")
    bound: NonNegative | None = Field(description="By how much that lead can still shrink; null while unknown.")
    kind: BoundKind = Field(description="What the bound is: see GET /models/{name}.")


class Prediction(Model):
    """The prediction for one row; nulls if it diverged or had no time for an answer."""

    label: str | None = Field(description="Name of the most likely class.")
    index: Count | None = Field(description="Of the label in the model's classes.")
    probabilities: list[Number] | None = Field(description="One per class, in the model's order.")
    iterations: Count = Field(
        description="Evaluations of the model's step: the cost of this row. 0 if the deadline left no time for one."
    )
    residual: NonNegative | None = Field(description="Size of the last change of the state; null without an iteration.")
    status: EndStatus = Field(description="Why the iteration ended.")
    stability: Stability | MISSING = Field(MISSING, description="Only with stop: label.")


class EngineTimings(Model):
    """The time that a request spent in the engine, in milliseconds."""

    queue_ms: NonNegative = Field(description="Until its first row had a slot.")
    compute_ms: NonNegative = Field(description="From then until its last row was read out.")
    total_ms: NonNegative = Field(description="Both together.")


class PredictResponse(Model):
    """One prediction per row, in the order of the request."""

    model: str = Field(description="Name of the model that answered.")
    version: int = Field(description="Its version.")
    predictions: list[Prediction] = Field(description="One per row.")
    timings: EngineTimings | MISSING = Field(MISSING, description="Only in the answer of a stream.")


class LabelProbability(Model):
    """A class, and how likely it is."""

    label: str = Field(description="Name of the class.")
    index: Count = Field(description="Of the label in the model's classes.")
    probability: Number = Field(description="In [0, 1].")


class StateMagnitude(Model):
    """The L2 norm of the state over its channels, at each position: a picture of it."""

    shape: tuple[int, int] = Field(
        description="Height and width, [1, entries] of a state without positions; above 64, it is pooled to 64 by maximum."
    )
    peak: NonNegative = Field(description="The largest magnitude.")
    magnitude: str = Field(description="Base64 of one byte per position, row by row; 255 stands for the peak, 0 for 0.")


class IterationEvent(Model):
    """Data of the event ``iteration``: one iteration of one row."""

    row: Count = Field(description="Of the request.")
    iteration: int = Field(ge=1, description="Number of the iteration.")
    residual: NonNegative | None = Field(description="Size of this change of the state; null if it is not finite.")
    top: list[LabelProbability] = Field(description="The most likely labels if the row ended here; most likely first.")
    state: StateMagnitude | MISSING = Field(
        MISSING, description="Only with trace: state, if it is finite; after 128 iterations, only of every 32nd."
    )


class LabelStopDescription(Model):
    """What a request with stop: label may rely on."""

    kind: BoundKind = Field(
        description="guarantee: the network contracts by construction; estimate: calibrated on held-out data."
    )
    solvers: tuple[str, ...] = Field(description="Those that support it.")
    tolerance: float = Field(description="Default tolerance of such requests.")
    inputs: int | None = Field(description="Held-out inputs that the estimate was tested on; null for a guarantee.")
    differing: float | None = Field(description="Share of them whose label was not that of the fixed point, in [0, 1].")
    iterations: float | None = Field(description="Their mean iterations.")


class ModelDescription(Model):
    """One version of a served model, the highest unless another one is named, and the numbers of the others."""

    name: str = Field(description="Name of the model, as in paths.")
    version: int = Field(description="The version described; the highest answers requests that name none.")
    versions: list[int] = Field(description="All that are served, ascending.")
    aliases: dict[str, int] = Field(description="Versions by their aliases, which paths may name in place of numbers.")
    default: bool = Field(description="Whether this is the model of /predict.")
    architecture: str = Field(description="Name of the network's class.")
    input: InputSpec = Field(description="One raw input, as clients send it.")
    classes: list[str] = Field(description="Labels, in the order of the probabilities.")
    tolerance: float = Field(description="Default of requests.")
    max_iterations: int = Field(description="Default of requests.")
    max_iterations_limit: int = Field(description="The highest that a request may set.")
    residual_norm: str = Field(description="How the residual is measured.")
    solver: str = Field(description="Default of requests.")
    solvers: list[str] = Field(description="Those that a request may name.")
    label_stop: LabelStopDescription | None = Field(description="Null if requests may not use stop: label.")
    metrics: dict[str, Any] | None = Field(description="metrics.json, as training wrote it.")
    files: dict[str, int] = Field(description="Files of the version that can be read, each with its size in bytes.")
    refused: dict[str, str] = Field(description="Versions that could not be loaded, each with the reason.")


class ModelList(Model):
    """What is served."""

    default: str | None = Field(description="The model of /predict: that of JFB_DEFAULT_MODEL, else the one published last.")
    models: list[ModelDescription] = Field(description="In alphabetical order.")
    refused: dict[str, str] = Field(description="name/version of what could not be loaded, with the reason.")


class Live(Model):
    """The server answers."""

    live: bool = Field(description="Always true.")


class Ready(Model):
    """All models are loaded and the engine answers."""

    ready: bool = Field(description="Always true; a server that is not ready answers 503.")


class Error(Model):
    """Why a request was not answered."""

    error: str = Field(description="What was wrong: field: must be requirement (got value).")
