"""MaskedIterations: several iterations of static slots, without a look from the host."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.graphs import Capture, HostCopy, Run, eager, host_buffer
from app.engine.slots import SlotTable
from jfb import LabelStop, ResidualNorm, residual
from jfb.mixed_precision import ROUNDOFF, needs_full_precision, size_in
from jfb.solvers import Memory, Solver

BLOCKS = 1, 4, 8
"""Numbers of iterations that are captured."""

Evaluate = Callable[[Memory, Tensor, Tensor], Tensor]
Readout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Masking:
    """How many slots are computed at a time, and for how many iterations.

    Args:
        buckets: numbers of slots, ascending: the smallest that holds the active rows is computed, or else all slots.
        blocks: numbers of iterations, ascending from 1.
        capture: makes one call of what a block computes.
        reads_out: whether a block ends with the readout: on a CPU that is done for the rows that have ended, and only then.
    """

    buckets: tuple[int, ...] = ()
    blocks: tuple[int, ...] = (1,)
    capture: Capture = eager
    reads_out: bool = False


class MaskedIterations:
    """Iterates the first slots of a table; rows that have ended, and free slots, are computed too, and left as they are.

    Counts, residuals and label stops are kept on the device, with no host code and no shape that depends on data. So a block of
    iterations can be captured as a CUDA graph, and with one bucket a row's arithmetic does not depend on its company. What a
    solver remembers of a row that has ended is left as it is only in low precision: nothing else reads it.

    Args:
        table: its tensors are iterated in place, and must not be replaced.
        evaluate, readout: the backend's.
        label_stop: judges the rows that end by their label, if any may.
        low_precision: whether rows end where they must go on in full precision, as that is rounded by ``roundoff``.

    Attributes:
        next_state: ``step`` of the point before each row's last iteration, ``[slots, *state_shape]``.
    """

    def __init__(
        self,
        table: SlotTable,
        solver: Solver,
        residual_norm: ResidualNorm,
        evaluate: Evaluate,
        readout: Readout,
        *,
        label_stop: LabelStop | None = None,
        low_precision: bool = False,
        roundoff: float = ROUNDOFF,
        masking: Masking,
    ) -> None:
        point, slots = table.tensors["point"], table.slots
        self.next_state = point.clone()
        self._table = table
        self._solver = solver
        self._norm = residual_norm
        self._evaluate, self._readout = evaluate, readout
        self._label_stop = label_stop
        self._low_precision, self._roundoff = low_precision, roundoff
        self._reads_out, self._has_read_out = masking.reads_out and not low_precision, False
        self._buckets = (*(rows for rows in masking.buckets if rows < slots), slots)
        self._blocks = masking.blocks
        self._running = point.new_zeros(slots, dtype=torch.bool)
        self._logits = readout(point).clone()
        # Each in one tensor, which is copied at once; float64 holds whatever is in them as it is.
        self._limits = point.new_zeros(3, slots, dtype=torch.float64)  # tolerance, iterations left, whether to end by label
        # Iterations, residual, size, margin, bound, and whether the row goes on.
        self._facts = point.new_zeros(6, slots, dtype=torch.float64)
        self._new_limits = host_buffer(self._limits)
        self._facts_on_host, self._logits_on_host = HostCopy(self._facts), HostCopy(self._logits)
        kinds = [(times, judging) for times in self._blocks for judging in (False, True) if label_stop is not None or not judging]
        self._runs: dict[tuple[int, int, bool], Run] = {
            (rows, *kind): masking.capture(partial(self._run, rows, *kind))
            for rows in reversed(self._buckets)  # the largest first: the others fit into its memory
            for kind in kinds
        }

    def bucket(self, active: int) -> int:
        """How many slots are computed for that many rows."""
        return next(rows for rows in self._buckets if rows >= active)

    def block(self, most: int) -> int:
        """The largest number of iterations up to that, or 1."""
        return max(times for times in self._blocks if times <= max(most, 1))

    def start(self, times: int, judging: bool) -> None:
        """Begin to iterate the active rows, none of which has ended, that often."""
        table, active, limits = self._table, self._table.active, self._new_limits.numpy()
        limits[0, :active], limits[2, :active] = table.tolerance, table.by_label
        limits[1, :active] = table.max_iterations - table.iterations - self._low_precision  # the last is never in low precision
        limits[1, active:] = 0
        self._limits.copy_(self._new_limits, non_blocking=True)
        self._runs[self.bucket(active), times, judging]()
        self._has_read_out = judging or self._reads_out
        self._facts_on_host.start()
        self._logits_on_host.start()

    def wait(self) -> NDArray[np.float64]:
        """What the last block came to, ``[6, slots]``: count, residual, size, margin, bound, and whether the row goes on."""
        return self._facts_on_host.wait().numpy()

    def logits(self) -> Tensor | None:
        """``next_state`` read out, ``[slots, classes]`` on the host; None if it was not."""
        return self._logits_on_host.wait() if self._has_read_out else None

    def _run(self, rows: int, times: int, judging: bool) -> None:
        """Iterate the first rows; those without iterations left are free."""
        self._running[:rows] = self._limits[1, :rows] > 0
        self._facts[0, :rows] = 0
        for _ in range(times):
            self._iterate(rows, judging)
        if self._reads_out and not judging:
            self._logits[:rows] = self._readout(self.next_state[:rows])

    def _iterate(self, rows: int, judging: bool) -> None:
        memory = {name: tensor[:rows] for name, tensor in self._table.tensors.items()}
        point, injection = memory.pop("point"), memory.pop("injection")
        running = self._running[:rows]
        tolerance, left, by_label = self._limits[:, :rows]
        iterations, last_residual, last_size, margin, bound, goes_on = self._facts[:, :rows]
        before = {name: tensor.clone() for name, tensor in memory.items()} if self._low_precision else {}

        next_state = self._evaluate(memory, point, injection)
        moved = residual(point, next_state, self._norm)
        results = [(self.next_state[:rows], next_state), (last_residual, moved)]
        if self._low_precision:
            size = size_in(next_state, self._norm)
            ended = needs_full_precision(moved, size, tolerance, self._roundoff)
            results.append((last_size, size))
        else:
            ended = (moved <= tolerance) | ~moved.isfinite()
        if judging and self._label_stop is not None:
            logits = self._readout(next_state)
            movement = moved if self._label_stop.norm is self._norm else self._label_stop.movement(point, next_state)
            stability = self._label_stop.judge(memory, movement, logits)
            ended |= stability.stable & (by_label > 0)
            results += [(self._logits[:rows], logits), (margin, stability.margin), (bound, stability.bound)]
        results.append((point, self._solver.propose(memory, point, next_state)))

        for last, new in results:
            torch.where(_per_row(running, new), new, last, out=last)
        for name, last in before.items():
            torch.where(_per_row(running, last), memory[name], last, out=memory[name])
        iterations += running
        running &= ~(ended | (iterations >= left))
        goes_on.copy_(running)


def _per_row(of_rows: Tensor, like: Tensor) -> Tensor:
    """One value per row, ``[n]``, in a shape that broadcasts with ``[n, ...]``."""
    return of_rows.view(-1, *(1,) * (like.dim() - 1))
