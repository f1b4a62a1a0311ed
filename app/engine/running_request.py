"""RunningRequest: what the engine knows of one request."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.engine_client.messages import Failed, Request, Result, Timings
from jfb import Status

RowResult = tuple[int, float, Status, float, float]  # iterations, residual, status, margin, bound


def check(request: Request, input_shape: tuple[int, ...]) -> None:
    """Raise a ``ValueError`` for what would harm other clients; the HTTP worker has checked the rest."""
    rows = request.rows
    if rows < 1:
        raise ValueError("inputs: must have at least one row (got none)")
    size, found = 4 * rows * math.prod(input_shape), len(request.inputs)
    if found != size:
        raise ValueError(f"inputs: must be {size} bytes, {rows} float32 rows of shape {list(input_shape)} (got {found})")
    for name, values in (("max_iterations", request.max_iterations), ("deadline", request.deadline)):
        if len(values) != rows:
            raise ValueError(f"{name}: must have {rows} values, one per row (got {len(values)})")
    if not all(0 < tolerance < math.inf for tolerance in request.tolerance):
        raise ValueError(f"tolerance: must be positive and finite (got {request.tolerance})")
    if not all(1 <= cap < 2**63 for cap in request.max_iterations):
        raise ValueError(f"max_iterations: must be at least 1 and below 2**63 (got {request.max_iterations})")
    if any(at is not None and math.isnan(at) for at in request.deadline):
        raise ValueError(f"deadline: must be seconds or null (got {request.deadline})")


class RunningRequest:
    """The rows of one request, which is answered when all have ended; ``ValueError`` for a wrong length or a value out of range.

    Args:
        number: unique within the engine, whereas ``request.id`` is unique within one client.
        request: as the client sent it; see ``check``.

    Attributes:
        inputs: float32 ``[rows, *input_shape]``.
        tolerance, max_iterations: one per row.
        deadline: one per row, infinite where there is none.
        logits: ``[rows, classes]``, NaN for rows without an iteration, unless a learned start was read out; the scheduler makes
            room for them.
        margin, bound: one per row, as in ``jfb.label_stop.Stability``; NaN without an iteration. None unless it has label stops.
        failure: why there is no result; None if there is one.
        start: where its rows start, ``[rows, *state_shape]``; None where the network says.
        fixed_points: where the rows of a session ended, of the same shape.
    """

    def __init__(self, number: int, request: Request, input_shape: tuple[int, ...]) -> None:
        check(request, input_shape)
        rows = request.rows
        self.number = number
        self.id = request.id
        self.solver = request.solver
        self.stop = request.stop
        self.session = request.session
        self.client = request.client
        self.streamed = request.streamed
        self.with_states = request.with_states
        self.rows = rows
        self.inputs: NDArray[np.float32] = np.frombuffer(request.inputs, "<f4").reshape(rows, *input_shape)
        # Lists, because most requests have one row, for which NumPy would take ten times as long.
        self.tolerance = request.tolerance
        self.max_iterations = request.max_iterations
        self.deadline = [math.inf if at is None else at for at in request.deadline]

        self.logits: NDArray[np.floating] = np.empty((rows, 0))
        self.iterations = [0] * rows
        self.residual = [math.nan] * rows
        self.status = [Status.CANCELLED] * rows
        self.margin = [math.nan] * rows if request.stop == "label" else None
        self.bound = [math.nan] * rows if request.stop == "label" else None
        self.failure: str | None = None
        self.timings = Timings()
        self.start: Tensor | None = None
        self.fixed_points: Tensor | None = None
        self._unfinished = rows

    @property
    def finished(self) -> bool:
        return self._unfinished == 0

    def expire(self, rows: list[int]) -> None:
        """End rows whose deadline passed while they waited, without an iteration."""
        for row in rows:
            self.status[row] = Status.DEADLINE
        self._unfinished -= len(rows)

    def end(self, row: int, logits: NDArray[np.floating], result: RowResult) -> None:
        """Take a row's result."""
        self.logits[row] = logits
        self.iterations[row], self.residual[row], self.status[row], margin, bound = result
        if self.margin is not None and self.bound is not None:
            self.margin[row], self.bound[row] = margin, bound
        self._unfinished -= 1

    def keep(self, row: int, fixed_point: Tensor) -> None:
        """Keep where a row ended, ``[*state_shape]``, for the next rows of the session."""
        if self.fixed_points is None:
            self.fixed_points = fixed_point.new_empty(self.rows, *fixed_point.shape)
        self.fixed_points[row] = fixed_point

    def answer(self) -> Result | Failed:
        """What the client gets, once all rows have ended or one has failed."""
        if self.failure is not None:
            return Failed(self.id, self.failure)
        logits = self.logits.astype("<f4").tobytes()
        return Result(self.id, logits, self.iterations, self.residual, self.status, self.timings, self.margin, self.bound)
