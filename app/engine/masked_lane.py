"""MaskedLane: rows that are iterated in blocks, without a look from the host within one."""

from collections.abc import Callable

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.isolation import Fail
from app.engine.lane import Lane
from app.engine.masked import MaskedIterations, Masking
from jfb.solvers import Memory

log = structlog.get_logger(__name__)


class MaskedLane(Lane):
    """Takes the place of a lane without rows; a row that has ended stays as it is until the block has ended, too."""

    in_blocks = True

    def __init__(self, lane: Lane, masking: Masking, clock: Callable[[], float]) -> None:
        vars(self).update(vars(lane))
        self._fail: Fail | None = None  # while blocks are captured
        self._masked = MaskedIterations(
            self.table,
            self.solver,
            self.residual_norm,
            self._evaluate_slots,
            self._read_slots_out,
            label_stop=self.label_stop,
            low_precision=self.full_precision is not None,
            roundoff=self.backend.roundoff,
            masking=masking,
        )
        self.next_state = self._masked.next_state
        self._unread_iterations = 0  # of the last block, while it has not been waited for
        self._all_go_on = True
        self.measure(clock)

    def _most(self) -> int:
        left = self.table.max_iterations - self.table.iterations
        most = min(self.iterations_between_looks(self.table.active), int(left.max()))
        # To look before the block has ended would be to wait for the device.
        return self._masked.block(most) if self.table.point.is_cuda else most

    def _iterate(self, most: int, judging: bool, fail: Fail) -> int:
        self._fail = fail
        self._unread_iterations = self._masked.block(most)
        self._masked.start(self._unread_iterations, judging)
        return self._unread_iterations

    def _evaluate_slots(self, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        try:
            return self.backend.evaluate(self.solver, memory, point, injection)
        except Exception as error:
            return self._isolated(error, self._evaluate, point)

    def _read_slots_out(self, states: Tensor) -> Tensor:
        try:
            return self.readout(states)
        except Exception as error:
            rows = np.arange(self.table.active)
            return self._isolated(
                error, lambda fail: self._read_out(rows, states[: len(rows)], fail), self._logits[: len(states)]
            )

    def _isolated(self, error: Exception, compute: Callable[[Fail], Tensor], slots: Tensor) -> Tensor:
        """After an error, compute the rows alone, and keep what is in free slots; raises it while blocks are captured."""
        if self._fail is None or isinstance(error, torch.AcceleratorError):
            raise error
        active = self.table.active
        log.warning("masked iteration failed, computing its rows", error=repr(error), rows=active)
        for tensor in self.table.tensors.values():
            tensor[active:] = tensor[:1]  # what raised may be in a free slot, and is computed no more
        return torch.cat([compute(self._fail), slots[active:]])

    def _settle(self, done: int) -> None:
        """Each row has a count of its own, which is still on the device."""

    def _computed(self) -> int:
        return self._masked.bucket(self.table.active)

    def wait_for_residual(self) -> NDArray[np.floating]:
        """The same: here the host waits for the device, and nowhere else in a tick."""
        if self._unread_iterations:
            table = self.table
            counts, moved, size, margin, bound, running = self._masked.wait()[:, : table.active]
            self._all_go_on = bool(running.all())
            self.wasted_iterations += self._computed() * self._unread_iterations - int(counts.sum())
            self._unread_iterations = 0
            table.iterations += counts.astype(np.int64)
            self._residual, self._size = moved.astype(table.tolerance.dtype), size
            if (by_label := table.by_label).any():
                table.margin[by_label], table.bound[by_label] = margin[by_label], bound[by_label]
        return super().wait_for_residual()

    def _some_ended(self) -> bool:
        self.wait_for_residual()
        return not self._all_go_on

    def read_out(self, rows: NDArray[np.intp], fail: Fail) -> NDArray[np.floating]:
        logits = self._masked.logits()
        return super().read_out(rows, fail).copy() if logits is None else logits[torch.from_numpy(rows)].numpy()
