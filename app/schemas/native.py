"""What goes over HTTP as JSON in answers; the OpenAPI schemas are made from these structs."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from app.engine_client.messages import LabelStop

EndStatus = Literal["converged", "label_stable", "max_iterations", "deadline", "diverged"]


class Stability(Struct, frozen=True):
    """How sure the label of a row is: it cannot change any more where the margin exceeds the bound."""

    margin: Annotated[float, Meta(ge=0, description="by how much the label's logit leads the closest rival's")] | None
    bound: Annotated[float, Meta(ge=0, description="by how much that lead can still shrink; null while nothing is known")] | None
    kind: Annotated[Literal["estimate", "guarantee"], Meta(description="what the bound is: see GET /models/{name}")]


class Prediction(Struct, frozen=True):
    """One row's answer. A row without one (diverged, or no time for an iteration) has nulls."""

    label: str | None
    index: Annotated[int, Meta(ge=0, description="of the label in the model's classes")] | None
    probabilities: Annotated[list[float], Meta(description="one per class, in the model's order")] | None
    iterations: Annotated[int, Meta(ge=0, description="evaluations of the model's step: what this row cost")]
    residual: Annotated[float, Meta(ge=0, description="how far the last iteration moved the state")] | None
    status: EndStatus
    stability: Annotated[Stability, Meta(description="only in answers to stop: label")] | UnsetType = UNSET


class PredictAnswer(Struct, frozen=True):
    """One prediction per row, in the order of the request."""

    model: str
    version: int
    predictions: list[Prediction]


class LabelProbability(Struct, frozen=True):
    """One of the labels that are likely at the moment."""

    label: str
    index: Annotated[int, Meta(ge=0, description="of the label in the model's classes")]
    probability: float


class IterationEvent(Struct, frozen=True):
    """The data of an event ``iteration``: what one iteration of one row came to."""

    row: Annotated[int, Meta(ge=0, description="of the request")]
    iteration: Annotated[int, Meta(ge=1)]
    residual: Annotated[float, Meta(ge=0, description="how far this iteration moved the state; null if it is not finite")] | None
    top: Annotated[list[LabelProbability], Meta(description="the likeliest labels, if the row ended here; likeliest first")]


class InputDescription(Struct, frozen=True):
    """What one raw input of a model is."""

    shape: Annotated[list[int], Meta(description="of one input; images are [channels, height, width]")]
    kind: Literal["image", "vector"]
    dtype: Literal["float32", "uint8"]
    low: Annotated[float, Meta(description="smallest value allowed")] | None
    high: Annotated[float, Meta(description="largest value allowed")] | None


class ModelDescription(Struct, frozen=True):
    """A served model: its highest version, and which others there are."""

    name: str
    version: Annotated[int, Meta(description="the one described, which answers when a request names none")]
    versions: list[int]
    default: Annotated[bool, Meta(description="whether /predict asks this model")]
    architecture: str
    input: InputDescription
    classes: Annotated[list[str], Meta(description="labels, in the order of the probabilities")]
    tolerance: Annotated[float, Meta(description="unless a request says otherwise")]
    max_iterations: Annotated[int, Meta(description="unless a request says otherwise")]
    max_iterations_limit: Annotated[int, Meta(description="the most that a request may ask for")]
    residual_norm: str
    solver: Annotated[str, Meta(description="unless a request says otherwise")]
    solvers: Annotated[list[str], Meta(description="those that a request may name")]
    label_stop: Annotated[LabelStop, Meta(description="of requests with stop: label; null if there may be none")] | None
    metrics: Annotated[dict[str, Any], Meta(description="metrics.json, as training wrote it")] | None
    refused: Annotated[dict[str, str], Meta(description="versions that could not be loaded, each with the reason")]


class ModelList(Struct, frozen=True):
    """Everything in the model store."""

    default: Annotated[str, Meta(description="the model that /predict asks")] | None
    models: list[ModelDescription]
    refused: Annotated[dict[str, str], Meta(description="name/version of what could not be loaded, with the reason")]


class Sample(Struct, frozen=True):
    """An input to try a model with."""

    input: Annotated[list[Any], Meta(description="raw, as predict takes it")]
    label: Annotated[str, Meta(description="the right answer")]


class Live(Struct, frozen=True):
    """The server answers."""

    live: bool


class Ready(Struct, frozen=True):
    """Every model is loaded and the engine answers."""

    ready: bool


class Error(Struct, frozen=True):
    """What was wrong: ``<field>: <what was expected>, got <value>``."""

    error: str
