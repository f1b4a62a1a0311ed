"""From what the engine computed to the answer that a client gets."""

from math import isfinite
from typing import cast

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from app.engine_client.catalogue import Model
from app.engine_client.client import Computed
from app.schemas.native import EndStatus, PredictAnswer, Prediction, Stability


def answer(model: Model, computed: Computed) -> PredictAnswer:
    """Labels and probabilities from logits; nulls for rows that have none (diverged, or no time for an iteration)."""
    probabilities = softmax(computed.logits)
    indices: list[int] = np.argmax(probabilities, axis=1).tolist()
    rounded: list[list[float]] = _float32_digits(probabilities).tolist()
    residual = [float(f"{movement:.9g}") for movement in computed.residual]
    predictions = []
    for row, (iterations, status) in enumerate(zip(computed.iterations, computed.status, strict=True)):
        end = cast(EndStatus, status)
        stability = _stability(model, computed, row)
        if iterations > 0 and status != "diverged" and isfinite(rounded[row][0]):
            index = indices[row]
            label = model.config.classes[index]
            predictions.append(Prediction(label, index, rounded[row], iterations, residual[row], end, stability))
        else:
            predictions.append(Prediction(None, None, None, iterations, None, end, stability))
    return PredictAnswer(model.name, model.version, predictions)


def _stability(model: Model, computed: Computed, row: int) -> Stability | UnsetType:
    if computed.margin is None or computed.bound is None or model.label_stop is None:
        return UNSET
    margin, bound = (value if isfinite(value) else None for value in (computed.margin[row], computed.bound[row]))
    return Stability(margin, bound, model.label_stop.kind)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities ``[n, classes]``, computed in float64; all NaN in a row whose logits are not numbers."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(np.subtract(logits, np.maximum.reduce(logits, axis=1, keepdims=True), dtype=np.float64))
        ratios: NDArray[np.float64] = powers / np.add.reduce(powers, axis=1, keepdims=True)
    return ratios


def _float32_digits(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to nine significant digits, which is all that float32 has: shorter numbers on the wire."""
    scales = 10.0 ** (8 - np.floor(np.log10(np.maximum(probabilities, 1e-45))))
    rounded: NDArray[np.float64] = np.rint(probabilities * scales) / scales
    return rounded
