"""Job: a request's rows inside the engine, and what becomes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.engine_client.messages import Moments, Stop
from jfb import Status


@dataclass(frozen=True)
class Progress:
    """What one iteration came to for the rows of a watched job that have a slot, m of them."""

    id: int
    """Of the job."""
    rows: list[int]
    iterations: list[int]
    residual: list[float]
    """Of that iteration."""
    logits: NDArray[np.floating]
    """Shape ``[m, classes]``: the answer if the rows ended here."""


class Job:
    """n rows that are answered together, however many slots and iterations each of them takes.

    Args:
        id: one that the engine has never seen.
        inputs: raw, float32 ``[n, *input_shape]``, n at least 1.
        tolerance: positive and finite, one per row.
        max_iterations: at least 1, one per row.
        deadline: in seconds of the engine's ``now``, or None, one per row.
        solver: a name of ``jfb.solvers.SOLVERS``, or None for the engine's own.
        stop: ``label`` ends a row, too, when its label cannot change any more.
        session: whose rows these are; they start where the last ones of the session ended. None starts from nothing.
        watched: whether each iteration is to be told.

    Attributes:
        logits: ``[n, classes]``, NaN for rows without an iteration.
        iterations, residual, status: one per row.
        margin, bound: one per row, as in ``jfb.label_stop.Stability``; NaN without an iteration. None if stop is ``tolerance``.
        failure: why there is no answer; None if there is one.
        moments: what happened to it when.
        start: where the rows start, ``[n, *state_shape]``; None where the network says.
        fixed_points: where those of a session ended, of the same shape.

    Raises:
        ValueError: for a list of the wrong length or a value out of range.
    """

    def __init__(
        self,
        id: int,
        inputs: NDArray[np.float32],
        tolerance: Sequence[float],
        max_iterations: Sequence[int],
        deadline: Sequence[float | None],
        *,
        solver: str | None = None,
        stop: Stop = "tolerance",
        session: str | None = None,
        watched: bool = False,
    ) -> None:
        rows = len(inputs)
        if rows < 1:
            raise ValueError("inputs: expected at least one row, got none")
        for name, values in (("tolerance", tolerance), ("max_iterations", max_iterations), ("deadline", deadline)):
            if len(values) != rows:
                raise ValueError(f"{name}: expected {rows} values, one per row, got {len(values)}")
        self.id = id
        self.inputs = inputs
        self.tolerance = np.asarray(tolerance, dtype=np.float64)
        if not (np.isfinite(self.tolerance) & (self.tolerance > 0)).all():
            raise ValueError(f"tolerance: expected positive finite numbers, got {list(tolerance)}")
        if not all(1 <= cap < 2**63 for cap in max_iterations):
            raise ValueError(f"max_iterations: expected integers of at least 1, got {list(max_iterations)}")
        self.max_iterations = np.asarray(max_iterations, dtype=np.int64)
        self.deadline = np.array([np.inf if moment is None else moment for moment in deadline], dtype=np.float64)
        if np.isnan(self.deadline).any():
            raise ValueError(f"deadline: expected seconds or none, got {list(deadline)}")

        self.solver = solver
        self.stop = stop
        self.session = session
        self.watched = watched

        self.logits: NDArray[np.floating] = np.empty((rows, 0))
        self.iterations = [0] * rows
        self.residual = [float("nan")] * rows
        self.status = [Status.CANCELLED] * rows
        self.margin = [float("nan")] * rows if stop == "label" else None
        self.bound = [float("nan")] * rows if stop == "label" else None
        self.failure: str | None = None
        self.moments = Moments()
        self.start: Tensor | None = None
        self.fixed_points: Tensor | None = None
        self._unfinished = rows

    @property
    def finished(self) -> bool:
        return self._unfinished == 0

    def give_up(self, rows: NDArray[np.int64]) -> None:
        """End rows whose deadline has passed while they waited, without an iteration."""
        for row in rows.tolist():
            self.status[row] = Status.DEADLINE
        self._unfinished -= len(rows)

    def keep(self, row: int, fixed_point: Tensor) -> None:
        """Take the state that a row ended with."""
        if self.fixed_points is None:
            self.fixed_points = fixed_point.new_empty(len(self.inputs), *fixed_point.shape)
        self.fixed_points[row] = fixed_point

    def end(
        self,
        row: int,
        logits: NDArray[np.floating],
        iterations: int,
        residual: float,
        status: Status,
        margin: float = float("nan"),
        bound: float = float("nan"),
    ) -> None:
        """Take a row's answer; margin and bound matter where stop is ``label``."""
        self.logits[row] = logits
        self.iterations[row] = iterations
        self.residual[row] = residual
        self.status[row] = status
        if self.margin is not None and self.bound is not None:
            self.margin[row], self.bound[row] = margin, bound
        self._unfinished -= 1
