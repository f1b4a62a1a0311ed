"""The OpenAPI description: schemas from ``wire``, and for /docs examples that the served models accept."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.engine_client.catalogue import Catalogue, InputSpec, Model
from app.http.body import KNOWN_TYPES
from app.http.errors import Refusal
from app.http.state import Server
from app.inference import images
from app.inference.decoding import LONGEST_SESSION
from app.inference.parameters import LARGEST_TOLERANCE, SMALLEST_TOLERANCE
from app.inference.samples import samples_of
from app.inference.stream import EVENT_STREAM
from app.schemas import native as wire
from app.schemas import open_inference as protocol
from app.settings import Settings

LONGEST_EXAMPLE = 4096
"""Numbers that an example may spell out; larger images are shown as PNG only."""

MEANINGS = {
    400: "Not JSON, or no model named where there is no default model; under /v2 also what is 422 elsewhere.",
    401: "The server wants a key, and this is none of its keys.",
    403: "The key may not be used for this.",
    404: "No such model or version; the answer says which there are.",
    408: "The head or the body did not arrive in time.",
    413: "The body or the batch is too large.",
    415: "A content type that the server does not know; the answer says which it knows.",
    422: "Something in the request is not as it should be; the answer names it.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The engine could not compute these rows.",
    503: "The models are being loaded, or the engine is being restarted; come back after Retry-After seconds.",
    504: "The deadline passed before any row had one iteration.",
}

SCHEMAS: dict[str, dict[str, Any]] = msgspec.json.schema_components(
    [
        *(wire.PredictAnswer, wire.ModelDescription, wire.ModelList, wire.Live, wire.Ready, wire.Error),
        *(wire.IterationEvent, wire.Sample),
        *(protocol.ServerMetadata, protocol.ModelMetadata, protocol.ModelReady, protocol.InferRequest, protocol.InferAnswer),
        *(protocol.IndexRequest, protocol.IndexEntry, protocol.ChangeRequest),
    ],
    ref_template="#/components/schemas/{name}",
)[1]


def answers(struct: type[msgspec.Struct], *errors: int, many: bool = False) -> dict[str, Any]:
    """Arguments for a route: that it answers with a struct, or a list of many, as JSON, or with one of some errors."""
    schema = {"type": "array", "items": _reference(struct)} if many else _reference(struct)
    success = {"description": struct.__doc__, "content": {"application/json": {"schema": schema}}}
    return {"responses": {200: success} | refusals(*errors)}


def refusals(*statuses: int) -> dict[int | str, Any]:
    """Descriptions of errors by status."""
    schema = _reference(wire.Error)
    return {status: {"description": MEANINGS[status], "content": {"application/json": {"schema": schema}}} for status in statuses}


def optional_body(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """Argument for a route: that it takes a struct as JSON, or nothing."""
    content = {"application/json": {"schema": _reference(struct), "examples": {"empty": {"summary": "nothing", "value": {}}}}}
    return {"openapi_extra": {"requestBody": {"required": False, "content": content}}}


def _reference(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


def _number_or_list(number: dict[str, Any], meaning: str) -> dict[str, Any]:
    several = {"type": "array", "items": number, "minItems": 1}
    return {"anyOf": [number, several], "description": f"{meaning} One for all rows, or a list of one per row."}


def _parameters(max_iterations_limit: int | None = None, solvers: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    cap: dict[str, Any] = {"type": "integer", "minimum": 1}
    if max_iterations_limit is not None:
        cap["maximum"] = max_iterations_limit
    tolerance = {"type": "number", "minimum": SMALLEST_TOLERANCE, "maximum": LARGEST_TOLERANCE}
    return {
        "tolerance": _number_or_list(tolerance, "Iterate until an iteration moves the state by no more than this."),
        "max_iterations": _number_or_list(cap, "But no more often than this."),
        "deadline_ms": _number_or_list({"type": "number", "exclusiveMinimum": 0}, "And no longer than this."),
        "solver": {
            "type": "string",
            "description": "Iterate by this one of the solvers that the model has; by its own unless said otherwise.",
        }
        | ({"enum": [*solvers]} if solvers else {}),
        "stop": {
            "type": "string",
            "enum": ["tolerance", "label"],
            "default": "tolerance",
            "description": "With label, end a row, too, when its label cannot change any more; not every model has that.",
        },
        "session": {
            "type": "string",
            "minLength": 1,
            "maxLength": LONGEST_SESSION,
            "description": "Start where the last rows of this session ended, if they were as many; for slowly changing inputs.",
        },
    }


PREDICT: dict[str, Any] = answers(wire.PredictAnswer, 400, 404, 408, 413, 415, 422, 429, 500, 503, 504) | {
    "description": (
        "Send a batch as JSON or as a .npy file, or one image as PNG or JPEG:\n\n"
        "```\n"
        "curl -H 'content-type: image/png' --data-binary @image.png 'http://127.0.0.1:8000/predict?tolerance=0.001'\n"
        "curl -H 'content-type: application/x-npy' --data-binary @batch.npy http://127.0.0.1:8000/predict\n"
        "```\n\n"
        "The parameters may stand in the query string (several times for one per row); those in a JSON body go before.\n\n"
        "With `Accept: text/event-stream` the answer comes about before your eyes: an event `iteration` for each iteration of "
        "each row (see IterationEvent), then one `answer`, or one `error` if there is none after all.\n\n"
        "```\n"
        "curl -N -H 'accept: text/event-stream' -H 'content-type: image/png' --data-binary @image.png "
        "http://127.0.0.1:8000/predict\n"
        "```"
    ),
    "openapi_extra": {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in _parameters().items()
        ],
        "requestBody": {
            "required": True,
            "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in KNOWN_TYPES},
        },
    },
}
"""Arguments for the predict routes."""
PREDICT["responses"][200]["content"][EVENT_STREAM] = {"schema": {"type": "string"}}

INFER: dict[str, Any] = answers(protocol.InferAnswer, 400, 404, 408, 413, 415, 429, 500, 503, 504) | {
    "description": (
        "Tensors may lie behind the JSON, in the request (`binary_data_size`) and in the answer (`binary_data`, "
        "`binary_data_output`); the header Inference-Header-Content-Length then says how long the JSON is. "
        "`tolerance` and `max_iterations` may be parameters, or inputs with one entry per row, which go before; `solver` and "
        "`stop` may be parameters. With `stop` being `label` there are the outputs `margin` and `bound`, too."
    ),
    "openapi_extra": {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(protocol.InferRequest)}}}
    },
}
"""Arguments for the infer routes."""


def install(app: FastAPI, server: Server) -> None:
    """Have ``/openapi.json`` describe the models that are served at the moment."""

    def describe() -> dict[str, Any]:
        description = get_openapi(title=app.title, version="1", summary=app.summary, routes=app.routes)
        description["components"]["schemas"] = SCHEMAS
        try:
            catalogue = server.catalogue
        except Refusal:  # the models are being loaded
            catalogue = Catalogue([], {}, None)
        for path, operations in description["paths"].items():
            for operation in operations.values():
                _fill_in(path, operation, catalogue, server.settings)
        return description

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's documented way to change the description


def _fill_in(path: str, operation: dict[str, Any], catalogue: Catalogue, settings: Settings) -> None:
    if "HTTPValidationError" in str(operation["responses"].get("422")):
        del operation["responses"]["422"]  # FastAPI adds it wherever the path has a parameter, even a text that is always valid
    shown = catalogue.default or next(iter(catalogue.names), None)
    model = catalogue.find(shown, None) if shown else None
    solvers = model.solvers if model else ()
    for parameter in operation.get("parameters", []):
        if model is not None and parameter["in"] == "path":
            kind = parameter["schema"].get("type", "string")
            parameter["example"] = {"name": model.name, "version": model.version}[parameter["name"]]
            parameter["example"] = str(parameter["example"]) if kind == "string" else parameter["example"]
        if parameter["name"] in ("max_iterations", "solver"):
            parameter["schema"] = _parameters(settings.max_iterations_limit, solvers)[parameter["name"]]
    if path.endswith("/infer") and model is not None:
        operation["requestBody"]["content"]["application/json"]["examples"] = _infer_examples(model, settings.model_store)
    if path.endswith("/predict"):
        # The default model's inputs are known; elsewhere they depend on the path.
        spec = model.config.input if model is not None and path == "/predict" else None
        body = operation["requestBody"]["content"]["application/json"]
        body["schema"] = _request_schema(spec, settings, solvers)
        if model is not None:
            body["examples"] = examples_for(model, settings.model_store)


def _request_schema(spec: InputSpec | None, settings: Settings, solvers: Sequence[str]) -> dict[str, Any]:
    rows = {"type": "array", "minItems": 1, "maxItems": settings.max_rows_per_request}
    inputs = (
        {"items": {}, "description": "Shape [n, *input shape]: GET /models says which."} if spec is None else _rows_schema(spec)
    )
    properties = {"inputs": rows | inputs}
    if spec is None or spec.kind == "image":
        files = {"type": "string", "contentEncoding": "base64"}
        properties["images"] = rows | {"items": files, "description": "PNG or JPEG files in base64."}
    return {
        "type": "object",
        "properties": properties | _parameters(settings.max_iterations_limit, solvers),
        "oneOf": [{"required": [name]} for name in properties],
        "additionalProperties": False,
    }


def _rows_schema(spec: InputSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "integer" if spec.dtype == "uint8" else "number"}
    if spec.low is not None:
        entry["minimum"] = spec.low
    if spec.high is not None:
        entry["maximum"] = spec.high
    for side in reversed(spec.shape):
        entry = {"type": "array", "items": entry, "minItems": side, "maxItems": side}
    return {"items": entry, "description": f"Shape [n, {', '.join(map(str, spec.shape))}]."}


def _infer_examples(model: Model, store: Path) -> dict[str, dict[str, Any]]:
    spec, tolerance = model.config.input, model.config.serving.tolerance
    if math.prod(spec.shape) > LONGEST_EXAMPLE:
        return {}
    data = _example_input(model, store)
    for _ in spec.shape[1:]:
        data = [entry for part in data for entry in part]
    tensor = {"name": "inputs", "datatype": "FP32", "shape": [1, *spec.shape], "data": data}
    return {"numbers": {"summary": "numbers", "value": {"inputs": [tensor], "parameters": {"tolerance": tolerance}}}}


def examples_for(model: Model, store: Path) -> dict[str, dict[str, Any]]:
    """Bodies that a model accepts, each with a summary: ``inputs`` if short enough to read, ``images`` if it takes any.

    They ask about the first of the model's samples, or about zeros where it has none.
    """
    spec, tolerance = model.config.input, model.config.serving.tolerance
    example = _example_input(model, store)
    examples: dict[str, dict[str, Any]] = {}
    if math.prod(spec.shape) <= LONGEST_EXAMPLE:
        examples["inputs"] = {"summary": "numbers", "value": {"inputs": [example], "tolerance": tolerance}}
    if spec.kind == "image":
        image = base64.b64encode(images.to_file(np.array(example), spec)).decode()
        examples["images"] = {"summary": "a PNG", "value": {"images": [image], "tolerance": tolerance}}
    return examples


def _example_input(model: Model, store: Path) -> list[Any]:
    """The first sample, or an input of zeros, or of what is nearest to zero within the model's range."""
    samples = samples_of(model, store)
    if samples:
        return samples[0].input
    spec = model.config.input
    nearest = max(spec.low or 0.0, 0.0) if spec.high is None or spec.high >= 0 else spec.high
    entry: Any = int(nearest) if nearest == int(nearest) else nearest
    for side in reversed(spec.shape):
        entry = [entry] * side
    example: list[Any] = entry
    return example
