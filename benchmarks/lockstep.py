"""Lockstep batching, as in servers for networks of fixed depth: the baseline of iteration-level batching."""

import numpy as np

from app.engine.scheduler import Scheduler


class LockstepScheduler(Scheduler):
    """Admits a batch when the previous one has ended, and ends all its rows together.

    A batch ends when its slowest row has converged at the strictest tolerance, or has reached the largest cap, in the batch. The
    batch must have one solver and no low precision; deadlines and label stops count only once the batch has ended.
    """

    def _admit(self, now: float) -> bool:
        if self.active_rows:
            return False
        iterated = super()._admit(now)
        for lane in self._batch.active_lanes:  # on a GPU, a row that has ended would be masked until the batch is looked at
            lane.table.tolerance[:] = lane.table.tolerance.min()
            lane.table.max_iterations[:] = lane.table.max_iterations.max()
        return iterated

    def _retire(self, now: float) -> int:
        if not self.active_rows:
            return 0
        (lane,) = self._batch.active_lanes
        table, residual = lane.table, lane.wait_for_residual()
        ended = (residual <= table.tolerance.min()) | ~np.isfinite(residual) | (table.iterations >= table.max_iterations.max())
        ended |= np.isin(table.request, list(self._abandoned))
        if not ended.all():
            return 0
        self._abandoned.clear()
        rows = np.arange(table.active)
        self._read_out(lane, rows, residual, now)
        table.remove(ended)
        return len(rows)
