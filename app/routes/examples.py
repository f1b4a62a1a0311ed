"""Examples: inputs to try the served models with, for /docs, /models/{name}/samples and the banner."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from app.engine_client.messages import ServedVersion
from app.http.errors import ApiError
from app.inference.decoding import check_rows
from jfb import images, store
from jfb.store import ModelVersion, Sample

MAX_EXAMPLE_NUMBERS = 4096
"""Larger inputs are shown as PNG only."""


def samples(model: ServedVersion, model_store: Path) -> list[Sample]:
    """The inputs to try a model with that training left in its folder; none if it left none that the model takes."""
    try:
        found = store.read_samples(ModelVersion(model.model, model.version).folder(model_store))
        if found:
            check_rows("inputs", np.array([one.input for one in found], dtype=np.float64), model.config.input)
    except (store.CheckpointError, ApiError, ValueError):
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


def infer_examples(model: ServedVersion, model_store: Path) -> dict[str, dict[str, Any]]:
    spec, tolerance = model.config.input, model.config.serving.tolerance
    if math.prod(spec.shape) > MAX_EXAMPLE_NUMBERS:
        return {}
    data = np.array(_example_input(model, model_store), dtype=object).ravel().tolist()
    tensor = {"name": "inputs", "datatype": "FP32", "shape": [1, *spec.shape], "data": data}
    return {"numbers": {"summary": "numbers", "value": {"inputs": [tensor], "parameters": {"tolerance": tolerance}}}}


def _example_input(model: ServedVersion, model_store: Path) -> list[Any]:
    """The first sample, or an input of zeros, or of what is nearest to zero within the model's range."""
    if found := samples(model, model_store):
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
