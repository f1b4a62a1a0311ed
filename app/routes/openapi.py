"""What FastAPI cannot generate of the OpenAPI description: errors, the bodies of the fast routes, examples from the served models."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.engine_client.errors import EngineUnavailable
from app.engine_client.messages import ServedVersion
from app.http.errors import ApiError
from app.http.state import AppState
from app.inference.decoding import rows_of_lists
from app.schemas.native import Error, IterationEvent, PredictRequest, Sample
from app.schemas.open_inference import InferRequest
from jfb import images, store
from jfb.store import ModelVersion

MAX_EXAMPLE_NUMBERS = 4096
"""Larger inputs are shown as PNG only."""

MEANINGS = {
    400: "Not JSON, or no model named and no default model; under /v2 also what is 422 elsewhere.",
    401: "Missing or invalid API key.",
    403: "The API key does not permit this.",
    404: "No such model or version; the error lists those that exist.",
    408: "The head or the body did not arrive in time.",
    413: "The body or the batch is too large.",
    415: "Unknown content type; the error lists the known ones.",
    422: "Invalid request; the error names the field.",
    429: "The queue is full; Retry-After says when to retry.",
    500: "The engine could not compute these rows.",
    503: "The models are being loaded, or the engine is being restarted; retry after Retry-After seconds.",
    504: "The deadline passed before any row completed an iteration.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error responses, for ``responses`` of a route."""
    return {status: {"model": Error, "description": MEANINGS[status]} for status in statuses}


def samples(model: ServedVersion, model_store: Path) -> list[Sample]:
    """The inputs to try a model with that training left in its folder; none if it left none that the model takes."""
    try:
        found = store.read_samples(ModelVersion(model.model, model.version).folder(model_store))
        if found:
            rows_of_lists([one.input for one in found], model.config.input, len(found))
    except (store.CheckpointError, ApiError):
        return []
    return [Sample(input=_whole_numbers(one.input), label=one.label) for one in found]


def predict_examples(model: ServedVersion, model_store: Path) -> dict[str, dict[str, Any]]:
    """Bodies that a model accepts, each with a summary: ``inputs`` if short enough to read, ``images`` if it takes any."""
    spec, tolerance = model.config.input, model.config.serving.tolerance
    example = _example_input(model, model_store)
    examples: dict[str, dict[str, Any]] = {}
    if math.prod(spec.shape) <= MAX_EXAMPLE_NUMBERS:
        examples["inputs"] = {"summary": "numbers", "value": {"inputs": [example], "tolerance": tolerance}}
    if spec.kind == "image":
        image = base64.b64encode(images.encode(np.array(example), spec)).decode()
        examples["images"] = {"summary": "a PNG", "value": {"images": [image], "tolerance": tolerance}}
    return examples


def install(app: FastAPI, state: AppState) -> None:
    """Have ``/openapi.json`` show examples for the models that are served at the moment."""

    def describe() -> dict[str, Any]:
        description = get_openapi(title=app.title, version="1", summary=app.summary, routes=app.routes)
        fast = [(PredictRequest, "validation"), (InferRequest, "validation"), (IterationEvent, "serialization")]
        schemas = models_json_schema(fast, ref_template="#/components/schemas/{model}")[1]["$defs"]  # type: ignore[arg-type]
        description["components"]["schemas"] |= schemas
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI adds them wherever a path has a parameter
            description["components"]["schemas"].pop(name, None)
        try:
            catalogue = state.engines.catalogue
            shown = catalogue.default or next(iter(catalogue.names), None)
            model = catalogue.find(shown) if shown else None
        except EngineUnavailable:  # the models are being loaded
            model = None
        for path, operations in description["paths"].items():
            for operation in operations.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
                if model is not None:
                    _add_examples(path, operation, model, state.settings.model_store)
        return description

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's documented way to change the description


def _add_examples(path: str, operation: dict[str, Any], model: ServedVersion, model_store: Path) -> None:
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            parameter["example"] = {"name": model.model, "version": model.version}[parameter["name"]]
    if path.endswith("/predict"):
        examples = predict_examples(model, model_store)
    elif path.endswith("/infer"):
        examples = _infer_examples(model, model_store)
    elif "requestBody" in operation:
        examples = {"empty": {"summary": "nothing", "value": {}}}
    else:
        return
    operation["requestBody"]["content"]["application/json"]["examples"] = examples


def _infer_examples(model: ServedVersion, model_store: Path) -> dict[str, dict[str, Any]]:
    spec, tolerance = model.config.input, model.config.serving.tolerance
    if math.prod(spec.shape) > MAX_EXAMPLE_NUMBERS:
        return {}
    data = np.array(_example_input(model, model_store), dtype=object).ravel().tolist()
    tensor = {"name": "inputs", "datatype": "FP32", "shape": [1, *spec.shape], "data": data}
    return {"numbers": {"summary": "numbers", "value": {"inputs": [tensor], "parameters": {"tolerance": tolerance}}}}


def _example_input(model: ServedVersion, model_store: Path) -> list[Any]:
    """The first sample, or an input of zeros, or of what is nearest to zero within the model's range."""
    found = samples(model, model_store)
    if found:
        return found[0].input
    spec = model.config.input
    nearest = max(spec.low or 0.0, 0.0) if spec.high is None or spec.high >= 0 else spec.high
    example: list[Any] = _whole_numbers(np.full(spec.shape, nearest).tolist())
    return example


def _whole_numbers(value: Any) -> Any:
    """Nested numbers, whole ones written as such: 5 is easier to read than 5.0."""
    if isinstance(value, list):
        return [_whole_numbers(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
