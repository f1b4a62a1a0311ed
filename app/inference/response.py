"""Responses: from what the engine computed to what a client gets, as ``schemas.native`` describes it."""

import math
import struct
from base64 import b64encode
from collections.abc import Sequence
from math import isfinite
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.engine_client.messages import Iteration, Result, ServedVersion

MAX_FEW_NUMBERS = 64
"""Logits of a response that Python turns into probabilities faster than NumPy."""
FLOAT_BYTES = 4


def predict_response(model: ServedVersion, result: Result) -> dict[str, Any]:
    """A ``PredictResponse``: labels and probabilities from logits; nulls for rows that diverged or have no answer."""
    classes = model.config.classes
    rows: list[list[float]]
    if len(result.logits) <= MAX_FEW_NUMBERS * FLOAT_BYTES:
        numbers = [*struct.unpack(f"<{len(result.logits) // FLOAT_BYTES}f", result.logits)]
        width = len(numbers) // len(result.iterations)
        rows = [numbers[begin : begin + width] for begin in range(0, len(numbers), width)]
        probabilities: list[object] = [_json_of_softmax(row) for row in rows]
    else:
        logits = result.logits_array()
        rows, rounded = logits.tolist(), _float32_digits(softmax(logits)).tolist()
        probabilities = [row if isfinite(row[0]) else None for row in rounded]
    predictions = []
    for row, (iterations, status) in enumerate(zip(result.iterations, result.status, strict=True)):
        valid = status != "diverged" and probabilities[row] is not None
        index = rows[row].index(max(rows[row]))
        prediction: dict[str, Any] = {
            "label": classes[index] if valid else None,
            "index": index if valid else None,
            "probabilities": probabilities[row] if valid else None,
            "iterations": iterations,
            "residual": float(f"{result.residual[row]:.9g}") if valid and iterations else None,
            "status": status,
        }
        if result.margin is not None and result.bound is not None and model.label_stop is not None:
            margin, bound = (value if isfinite(value) else None for value in (result.margin[row], result.bound[row]))
            prediction["stability"] = {"margin": margin, "bound": bound, "kind": model.label_stop.kind}
        predictions.append(prediction)
    return {"model": model.model, "version": model.version, "predictions": predictions}


def engine_timings(result: Result) -> dict[str, float]:
    """``EngineTimings`` of a request."""
    seconds = {phase: end - start for phase, (start, end) in result.timings.phases().items()}
    queue, total = seconds.get("queue", 0.0), sum(seconds.values())
    return {
        f"{name}_ms": round(1e3 * value, 3) for name, value in (("queue", queue), ("compute", total - queue), ("total", total))
    }


def iteration_events(model: ServedVersion, iteration: Iteration) -> list[dict[str, Any]]:
    """An ``IterationEvent`` for each row, with the five most likely labels."""
    classes = model.config.classes
    probabilities = softmax(iteration.logits_array())
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5].tolist()
    events = []
    for k, (row, count, residual) in enumerate(zip(iteration.rows, iteration.iterations, iteration.residual, strict=True)):
        valid = isfinite(residual) and bool(np.isfinite(probabilities[k]).all())
        top = [{"label": classes[index], "index": index, "probability": float(probabilities[k, index])} for index in best[k]]
        event: dict[str, Any] = {
            "row": row,
            "iteration": count,
            "residual": residual if valid else None,
            "top": top if valid else [],
        }
        if iteration.states and (state := iteration.states[k]):
            shares = b64encode(state.shares).decode()
            event["state"] = {"shape": [state.height, state.width], "peak": state.peak, "magnitude": shares}
        events.append(event)
    return events


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities ``[n, classes]``, computed in float64; all NaN in a row whose logits are not finite numbers."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(np.subtract(logits, np.maximum.reduce(logits, axis=1, keepdims=True), dtype=np.float64))
        ratios: NDArray[np.float64] = powers / np.add.reduce(powers, axis=1, keepdims=True)
    return ratios


def _json_of_softmax(logits: Sequence[float]) -> msgspec.Raw | None:
    """The same for few numbers, as JSON with nine significant digits, for which NumPy would take three times as long."""
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    total = sum(powers)
    if not isfinite(total):
        return None
    return msgspec.Raw(b"[%b]" % ",".join([f"{power / total:.9g}" for power in powers]).encode())


def _float32_digits(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to nine significant digits, which is all that float32 has: shorter JSON."""
    scales = 10.0 ** (8 - np.floor(np.log10(np.maximum(probabilities, 1e-45))))
    rounded: NDArray[np.float64] = np.rint(probabilities * scales) / scales
    return rounded
