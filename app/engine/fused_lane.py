"""FusedLane: rows whose iterations are one call each into ONNX Runtime."""

import math
from collections.abc import Callable

import numpy as np
import structlog

from app.engine.isolation import Fail
from app.engine.lane import Lane
from app.engine.slots import SlotTable
from jfb.onnx.file import OnnxFileError
from jfb.onnx.fused import FusedIteration

log = structlog.get_logger(__name__)


class FusedLane(Lane):
    """Takes the place of a lane without rows, with the table that ``fused`` iterates; if that raises, iterates in parts."""

    def __init__(self, lane: Lane, table: SlotTable, fused: FusedIteration) -> None:
        vars(self).update(vars(lane))
        self.table = table
        self._fused = fused

    def _iterate(self, most: int, judging: bool, fail: Fail) -> int:
        try:
            found = self._fused(self.table.active, logits=judging)
        except Exception as error:  # ONNX Runtime's exceptions have no common type
            log.warning("fused iteration failed, computing its parts", error=repr(error), rows=self.table.active)
            self._settle(0)
            return super()._iterate(most, judging, fail)
        self.next_state, self._residual, self._judged = found.next_state, found.residual, None
        if judging:
            rows = np.flatnonzero(self.table.by_label)
            index = self._index(rows)
            self._judge(rows, found.movement[index], found.logits[index])
        return 1

    def _settle(self, done: int) -> None:
        super()._settle(done)
        if replaced := self._fused.settle():
            self.table.replace(**replaced)


def faster(lane: Lane, clock: Callable[[], float]) -> Lane:
    """Measure a lane without rows, and return it, or a fused one in its place if there can be one, and it is faster."""
    point, injection = (lane.table.tensors[name].contiguous() for name in ("point", "injection"))
    table = SlotTable(point, injection, lane.start(point))
    stop_norm = lane.label_stop.norm if lane.label_stop is not None else lane.residual_norm
    iteration = None
    try:
        iteration = lane.backend.fused(table.tensors, lane.solver, lane.residual_norm, stop_norm)
    except OnnxFileError as error:
        log.warning("no fused iteration", reason=str(error))
    if iteration is None:
        lane.measure(clock)
        return lane
    fused = FusedLane(lane, table, iteration)
    # In turns, because how fast a shared machine is changes while they are measured.
    seconds = [(lane.seconds(rows, clock), fused.seconds(rows, clock)) for rows in lane.sizes]
    lane.iteration_seconds, fused.iteration_seconds = zip(*seconds, strict=True)
    return fused if math.prod(fused.iteration_seconds) < math.prod(lane.iteration_seconds) else lane
