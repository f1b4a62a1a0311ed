"""JSON of the native API: requests and responses.

The predict routes decode and encode without these models (``inference/decoding.py``, ``inference/response.py``), for speed; a
test holds both together. All other routes use them.
"""

from typing import Annotated, Any, Literal

from pydantic import MISSING, BaseModel, ConfigDict, Field, JsonValue

EndStatus = Literal["converged", "label_stable", "max_iterations", "deadline", "diverged"]

MAX_SESSION_CHARACTERS = 128
MIN_TOLERANCE, MAX_TOLERANCE = 1.1754943508222875e-38, 3.4028234663852886e38
"""The engine computes in float32, where smaller numbers are lost and larger ones infinite."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Tolerance = Annotated[Number, Field(ge=MIN_TOLERANCE, le=MAX_TOLERANCE)]
Cap = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[Number, Field(gt=0)]
PER_ROW = "One value for all rows, or a list of one per row."


class Model(BaseModel):
    """A model whose fields' docstrings describe them."""

    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)


class PredictParameters(Model):
    """How the rows of a request are solved; the model's own defaults hold for what is left out."""

    model_config = ConfigDict(extra="forbid")

    tolerance: Tolerance | list[Tolerance] | MISSING = Field(
        MISSING, description=f"Stop when the residual is at most this. {PER_ROW}"
    )
    max_iterations: Cap | list[Cap] | MISSING = Field(MISSING, description=f"Stop after this many iterations. {PER_ROW}")
    deadline_ms: Milliseconds | list[Milliseconds] | MISSING = Field(
        MISSING, description=f"Stop after this time, from the arrival of the request. {PER_ROW}"
    )
    solver: str | MISSING = MISSING
    """One of the model's solvers."""
    stop: Literal["tolerance", "label"] = "tolerance"
    """label also ends a row once its label cannot change any more; not every model offers it."""
    session: Annotated[str, Field(min_length=1, max_length=MAX_SESSION_CHARACTERS)] | None = None
    """Start where the last rows of this session ended, if there were as many; for inputs that change slowly."""


class PredictRequest(PredictParameters):
    """Rows to predict: either inputs or images."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["inputs"]}, {"required": ["images"]}]})

    inputs: Annotated[list[JsonValue], Field(min_length=1)] | MISSING = MISSING
    """Nested lists of shape [n, *input shape]; GET /models has the shape."""
    images: Annotated[list[str], Field(min_length=1)] | MISSING = MISSING
    """PNG or JPEG files in base64."""


class Stability(Model):
    """How certain the label of a row is: it cannot change any more where the margin exceeds the bound."""

    margin: Annotated[Number, Field(ge=0)] | None
    """By how much the label's logit leads that of the closest rival."""
    bound: Annotated[Number, Field(ge=0)] | None
    """By how much that lead can still shrink; null while unknown."""
    kind: Literal["estimate", "guarantee"]
    """What the bound is: see GET /models/{name}."""


class Prediction(Model):
    """The prediction for one row; nulls if it diverged or had no time for an iteration."""

    label: str | None
    index: Annotated[int, Field(ge=0)] | None
    """Of the label in the model's classes."""
    probabilities: list[Number] | None
    """One per class, in the model's order."""
    iterations: Annotated[int, Field(ge=0)]
    """Evaluations of the model's step: the cost of this row."""
    residual: Annotated[Number, Field(ge=0)] | None
    """Size of the last change of the state."""
    status: EndStatus
    stability: Stability | MISSING = MISSING
    """Only with stop: label."""


class PredictResponse(Model):
    """One prediction per row, in the order of the request."""

    model: str
    version: int
    predictions: list[Prediction]


class LabelProbability(Model):
    """One of the most likely labels."""

    label: str
    index: Annotated[int, Field(ge=0)]
    """Of the label in the model's classes."""
    probability: Number


class IterationEvent(Model):
    """Data of the event ``iteration``: one iteration of one row."""

    row: Annotated[int, Field(ge=0)]
    """Of the request."""
    iteration: Annotated[int, Field(ge=1)]
    residual: Annotated[Number, Field(ge=0)] | None
    """Size of this change of the state; null if it is not finite."""
    top: list[LabelProbability]
    """The most likely labels if the row ended here; most likely first."""


class InputDescription(Model):
    """One raw input of a model."""

    shape: list[int]
    """Of one input; images are [channels, height, width]."""
    kind: Literal["image", "vector"]
    dtype: Literal["float32", "uint8"]
    low: float | None
    """Smallest value allowed."""
    high: float | None
    """Largest value allowed."""


class LabelStopDescription(Model):
    """What a request with stop: label may rely on."""

    kind: Literal["estimate", "guarantee"]
    """guarantee: the network contracts by construction; estimate: calibrated on held-out data."""
    solvers: tuple[str, ...]
    """Those that support it."""
    tolerance: float
    """Default tolerance of such requests."""
    inputs: int | None
    """Held-out inputs that the estimate was tested on; null for a guarantee."""
    differing: float | None
    """Share of them whose label was not that of the fixed point, in [0, 1]."""
    iterations: float | None
    """Their mean iterations."""


class ModelDescription(Model):
    """A served model: its highest version, and the numbers of the others."""

    name: str
    version: int
    """The version described, which answers requests that name none."""
    versions: list[int]
    default: bool
    """Whether this is the model of /predict."""
    architecture: str
    input: InputDescription
    classes: list[str]
    """Labels, in the order of the probabilities."""
    tolerance: float
    """Default of requests."""
    max_iterations: int
    """Default of requests."""
    max_iterations_limit: int
    """The highest that a request may set."""
    residual_norm: str
    solver: str
    """Default of requests."""
    solvers: list[str]
    """Those that a request may name."""
    label_stop: LabelStopDescription | None
    """Null if requests may not use stop: label."""
    metrics: dict[str, Any] | None
    """metrics.json, as training wrote it."""
    refused: dict[str, str]
    """Versions that could not be loaded, each with the reason."""


class ModelList(Model):
    """All served models."""

    default: str | None
    """The model of /predict."""
    models: list[ModelDescription]
    refused: dict[str, str]
    """name/version of what could not be loaded, with the reason."""


class Sample(Model):
    """An input to try a model with."""

    input: list[JsonValue]
    """Raw, as predict takes it."""
    label: str
    """The correct label."""


class Live(Model):
    """The server answers."""

    live: bool


class Ready(Model):
    """All models are loaded and the engine answers."""

    ready: bool


class Error(Model):
    """What was wrong: ``<field>: must be <requirement> (got <value>)``."""

    error: str
