"""What a request may ask for beside its inputs: how exact, how long, by which solver.

A number is for all rows, a list has one for each; solver and stop are of the whole request.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeGuard, TypeVar

from app.engine_client.catalogue import Model
from app.engine_client.messages import Stop
from app.http.errors import Refusal, expected

NAMES = ("tolerance", "max_iterations", "deadline_ms", "solver", "stop")

SMALLEST_TOLERANCE = 1.1754943508222875e-38
LARGEST_TOLERANCE = 3.4028234663852886e38
"""The engine computes in float32, where smaller numbers are lost and larger ones infinite."""


Entry = TypeVar("Entry", int, float)


@dataclass(frozen=True)
class Parameters:
    """One entry per row in each list."""

    tolerance: list[float]
    max_iterations: list[int]
    deadline_ms: list[float | None]
    """Milliseconds from the arrival of the request."""
    solver: str | None = None
    """The model's own if None."""
    stop: Stop = "tolerance"


def read(given: Mapping[str, object], rows: int, model: Model, max_iterations_limit: int) -> Parameters:
    """Check the parameters and spread them over the rows.

    Args:
        given: values by name; what is missing takes the model's default.
        rows: how many.
        model: its cap is cut to the server's limit.
        max_iterations_limit: the highest cap allowed.

    Raises:
        Refusal: 422 for a value out of its range, a list of the wrong length, or what this model does not offer.
    """
    serving = model.config.serving
    stop = _stop(given, model)
    solver = _solver(given, model, stop)
    default_tolerance = model.label_stop.tolerance if stop == "label" and model.label_stop else serving.tolerance

    def tolerance(value: object) -> float | None:
        return float(value) if _is_number(value) and SMALLEST_TOLERANCE <= value <= LARGEST_TOLERANCE else None

    def cap(value: object) -> int | None:
        return int(value) if _is_number(value) and 1 <= value <= max_iterations_limit and value % 1 == 0 else None

    def deadline(value: object) -> float | None:
        return float(value) if _is_number(value) and 0 < value <= sys.float_info.max else None

    default_cap = min(serving.max_iterations, max_iterations_limit)
    return Parameters(
        _per_row("tolerance", given, rows, tolerance, "a finite number above 0 (1.2e-38 to 3.4e38)")
        or [default_tolerance] * rows,
        _per_row("max_iterations", given, rows, cap, f"an integer from 1 to {max_iterations_limit}") or [default_cap] * rows,
        [*_per_row("deadline_ms", given, rows, deadline, "a finite number above 0")] or [None] * rows,
        solver,
        stop,
    )


def _stop(given: Mapping[str, object], model: Model) -> Stop:
    match given.get("stop", "tolerance"):
        case "tolerance":
            return "tolerance"
        case "label" if model.label_stop is not None:
            return "label"
        case "label":
            why = f"tolerance, as {model.name} has no label stops (python -m training evaluate calibrates them)"
            raise expected("stop", why, "label")
        case other:
            raise expected("stop", "one of tolerance, label", other)


def _solver(given: Mapping[str, object], model: Model, stop: Stop) -> str | None:
    """The solver that was asked for; for a label stop one that it goes with, the model's own if that does."""
    solver = given.get("solver", model.config.serving.solver)
    if not isinstance(solver, str) or solver not in model.solvers:
        raise expected("solver", f"one of {', '.join(model.solvers)}", solver)
    if stop == "label" and model.label_stop is not None and solver not in model.label_stop.solvers:
        if "solver" in given:
            raise expected("solver", f"one of {', '.join(model.label_stop.solvers)} with stop label", solver)
        return model.label_stop.solvers[0]
    return solver if "solver" in given else None


def _per_row(
    name: str, given: Mapping[str, object], rows: int, read_one: Callable[[object], Entry | None], what: str
) -> list[Entry]:
    """One entry per row; an empty list if the parameter is not given."""
    if name not in given:
        return []
    value = given[name]
    if isinstance(value, list) and len(value) != rows:
        raise Refusal(422, f"{name}: expected a number or a list of {rows}, one per row, got a list of {len(value)}")
    entries = []
    for index, entry in enumerate(value if isinstance(value, list) else [value]):
        result = read_one(entry)
        if result is None:
            raise expected(f"{name}[{index}]" if isinstance(value, list) else name, what, entry)
        entries.append(result)
    return entries if isinstance(value, list) else entries * rows


def _is_number(value: object) -> TypeGuard[int | float]:
    """To Python, true and false would be numbers too."""
    return type(value) in (int, float)
