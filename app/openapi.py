"""The OpenAPI description: schemas from ``wire``, and for /docs examples that the served models accept."""

import base64
import io
import math
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from PIL import Image

from app import wire
from app.body import KNOWN_TYPES
from app.catalogue import Catalogue, InputSpec, Model
from app.errors import Refusal
from app.parameters import LARGEST_TOLERANCE, SMALLEST_TOLERANCE
from app.server import Server
from app.settings import Settings

LONGEST_EXAMPLE = 4096
"""Numbers that an example may spell out; larger images are shown as PNG only."""

MEANINGS = {
    400: "Not JSON, or no model named where there is no default model.",
    404: "No such model or version; the answer says which there are.",
    413: "The body or the batch is too large.",
    415: "A content type that the server does not know; the answer says which it knows.",
    422: "Something in the request is not as it should be; the answer names it.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The engine could not compute these rows.",
    503: "The models are being loaded, or the engine is being restarted; come back after Retry-After seconds.",
    504: "The deadline passed before any row had one iteration.",
}

SCHEMAS: dict[str, dict[str, Any]] = msgspec.json.schema_components(
    [wire.PredictAnswer, wire.ModelDescription, wire.ModelList, wire.Live, wire.Ready, wire.Error],
    ref_template="#/components/schemas/{name}",
)[1]


def answers(struct: type[msgspec.Struct], *errors: int) -> dict[str, Any]:
    """Arguments for a route: that it answers with a struct as JSON, or with one of some errors."""
    statuses: dict[int | str, Any] = {200: _json(struct, struct.__doc__ or "")}
    return {"responses": statuses | {status: _json(wire.Error, MEANINGS[status]) for status in errors}}


def _json(struct: type[msgspec.Struct], meaning: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{struct.__name__}"}
    return {"description": meaning, "content": {"application/json": {"schema": reference}}}


def _number_or_list(number: dict[str, Any], meaning: str) -> dict[str, Any]:
    several = {"type": "array", "items": number, "minItems": 1}
    return {"anyOf": [number, several], "description": f"{meaning} One for all rows, or a list of one per row."}


def _parameters(max_iterations_limit: int | None = None) -> dict[str, dict[str, Any]]:
    cap: dict[str, Any] = {"type": "integer", "minimum": 1}
    if max_iterations_limit is not None:
        cap["maximum"] = max_iterations_limit
    tolerance = {"type": "number", "minimum": SMALLEST_TOLERANCE, "maximum": LARGEST_TOLERANCE}
    return {
        "tolerance": _number_or_list(tolerance, "Iterate until an iteration moves the state by no more than this."),
        "max_iterations": _number_or_list(cap, "But no more often than this."),
        "deadline_ms": _number_or_list({"type": "number", "exclusiveMinimum": 0}, "And no longer than this."),
    }


PREDICT: dict[str, Any] = answers(wire.PredictAnswer, 400, 404, 413, 415, 422, 429, 500, 503, 504) | {
    "description": (
        "Send a batch as JSON or as a .npy file, or one image as PNG or JPEG:\n\n"
        "```\n"
        "curl -H 'content-type: image/png' --data-binary @image.png 'http://127.0.0.1:8000/predict?tolerance=0.001'\n"
        "curl -H 'content-type: application/x-npy' --data-binary @batch.npy http://127.0.0.1:8000/predict\n"
        "```\n\n"
        "The parameters may stand in the query string (several times for one per row); those in a JSON body go before."
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


def install(app: FastAPI, server: Server) -> None:
    """Have ``/openapi.json`` describe the models that are served at the moment."""

    def describe() -> dict[str, Any]:
        description = get_openapi(title=app.title, version="1", summary=app.summary, routes=app.routes)
        description["components"] = {"schemas": SCHEMAS}
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
    for parameter in operation.get("parameters", []):
        if model is not None and parameter["in"] == "path":
            parameter["example"] = {"name": model.name, "version": model.version}[parameter["name"]]
        if parameter["name"] == "max_iterations":
            parameter["schema"] = _parameters(settings.max_iterations_limit)["max_iterations"]
    if "requestBody" in operation:
        # The default model's inputs are known; elsewhere they depend on the path.
        spec = model.config.input if model is not None and path == "/predict" else None
        body = operation["requestBody"]["content"]["application/json"]
        body["schema"] = _request_schema(spec, settings)
        if model is not None:
            body["examples"] = examples_for(model)


def _request_schema(spec: InputSpec | None, settings: Settings) -> dict[str, Any]:
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
        "properties": properties | _parameters(settings.max_iterations_limit),
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


def examples_for(model: Model) -> dict[str, dict[str, Any]]:
    """Bodies that a model accepts, each with a summary: ``inputs`` if short enough to read, ``images`` if it takes any."""
    spec, tolerance = model.config.input, model.config.serving.tolerance
    examples: dict[str, dict[str, Any]] = {}
    if math.prod(spec.shape) <= LONGEST_EXAMPLE:
        entry: Any = max(spec.low or 0.0, 0.0) if spec.high is None or spec.high >= 0 else spec.high
        entry = int(entry) if entry == int(entry) else entry
        for side in reversed(spec.shape):
            entry = [entry] * side
        examples["inputs"] = {"summary": "numbers", "value": {"inputs": [entry], "tolerance": tolerance}}
    if spec.kind == "image":
        file = io.BytesIO()
        Image.new("L", (spec.shape[2], spec.shape[1])).save(file, "PNG")
        image = base64.b64encode(file.getvalue()).decode()
        examples["images"] = {"summary": "a PNG", "value": {"images": [image], "tolerance": tolerance}}
    return examples
