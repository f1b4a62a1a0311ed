"""RunningBatch: the rows that iterate together."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.backends.backend import Backend
from app.engine.fused_lane import faster
from app.engine.isolation import Fail, one_by_one
from app.engine.lane import MAX_SECONDS_BETWEEN_LOOKS, Lane, shortest
from app.engine.masked import Masking
from app.engine.masked_lane import MaskedLane
from jfb import LabelStop, ResidualNorm
from jfb.onnx.file import OnnxFileError
from jfb.onnx.one_row import Lived, OneRow
from jfb.rows import to_device
from jfb.solvers import Solver

log = structlog.get_logger(__name__)

TRIED_ITERATIONS = 4
"""To find out what computes a row that is alone fastest."""


class RunningBatch:
    """Slots on a device, in lanes: one for each solver, and with low precision one more, in which its rows start.

    Args:
        solvers: by name; the first is taken for rows that name none.
        input_shape: of one row.
        slots: rows that iterate at a time. That many are tried out at once, so that what does not fit into memory fails here.
        label_stop: judges the rows that end by their label; none do if it is None.
        low_precision: computes ``step`` while rows are far from their tolerance. Not for rows that end by their label, which is
            settled long before they are near.
        has_learned_start: whether the states that rows start at are worth reading out.

    Attributes:
        lanes: those in which rows end come before those from which rows are handed over to them.
        classes: how many logits a row has.
    """

    def __init__(
        self,
        backend: Backend,
        solvers: Mapping[str, Solver],
        residual_norm: ResidualNorm,
        input_shape: tuple[int, ...],
        *,
        slots: int,
        label_stop: LabelStop | None = None,
        low_precision: Backend | None = None,
        has_learned_start: bool = False,
    ) -> None:
        self.has_learned_start = has_learned_start
        self.solvers = dict(solvers)
        self.input_shape = input_shape
        self.slots = slots
        self.label_stop = label_stop
        self._backend = backend
        with torch.inference_mode():
            injection = backend.inject(torch.zeros(slots, *input_shape, device=backend.device, dtype=backend.dtype))
            point = backend.initial_state(injection)
            self._full_precision: dict[str, Lane] = {}
            for name, solver in solvers.items():
                stop = label_stop if label_stop is not None and label_stop.supports(type(solver)) else None
                self._full_precision[name] = Lane(backend, solver, residual_norm, point, injection, label_stop=stop)
            self._low_precision: dict[str, Lane] = {
                name: Lane(low_precision, lane.solver, residual_norm, point, injection, full_precision=lane)
                for name, lane in self._full_precision.items()
                if low_precision is not None and not lane.solver.splits
            }
            self.classes = backend.readout(point).shape[1]
        self._one_row: dict[str, tuple[OneRow, int]] = {}  # and how many iterations of it fit between two looks
        self._residual_norm = residual_norm
        self.lanes = [*self._full_precision.values(), *self._low_precision.values()]
        self._default = next(iter(solvers))

    @property
    def active(self) -> int:
        return sum(lane.table.active for lane in self.lanes)

    @property
    def active_lanes(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.table.active]

    @property
    def in_blocks(self) -> bool:
        """Whether the device may go on to iterate while the host does other work."""
        return self.lanes[0].in_blocks

    @property
    def wasted_iterations(self) -> int:
        return sum(lane.wasted_iterations for lane in self.lanes)

    def offers_label_stop(self, solver: str | None) -> bool:
        """Whether rows of a solver may end by their label."""
        return self._full_precision[solver or self._default].label_stop is not None

    def inject(self, inputs: NDArray[np.float32], requests: NDArray[np.int64], fail: Fail) -> Tensor:
        """The injection of rows whose requests have these numbers."""
        tensor = self._on_device(inputs)
        try:
            return self._backend.inject(tensor)
        except Exception as error:
            return one_by_one(error, self._backend.inject, self.lanes[0].table.injection, requests, fail, tensor)

    def _on_device(self, inputs: NDArray[np.float32]) -> Tensor:
        return to_device(inputs, self._backend.device).to(self._backend.dtype)

    def initial_state(self, injection: Tensor, requests: NDArray[np.int64], fail: Fail) -> Tensor:
        """Where those rows start unless there is a better point."""
        try:
            return self._backend.initial_state(injection)
        except Exception as error:
            return one_by_one(error, self._backend.initial_state, self.lanes[0].table.point, requests, fail, injection)

    def first_logits(self, inputs: NDArray[np.float32]) -> NDArray[np.floating]:
        """The logits ``[n, classes]`` of rows where they start."""
        tensor = self._on_device(inputs)
        logits = self._backend.readout(self._backend.initial_state(self._backend.inject(tensor)))
        found: NDArray[np.floating] = logits.cpu().numpy()
        return found

    def admit(self, solvers: Sequence[str | None], point: Tensor, injection: Tensor, **host: Sequence[Any]) -> None:
        """Write rows into free slots, each into its lane: ``host`` names what the slot table keeps on the host."""
        limits = zip(solvers, host["max_iterations"], host["by_label"], strict=True)
        lanes = [self._first_lane(*row) for row in limits]
        if lanes.count(lanes[0]) == len(lanes):  # nearly always, and nothing is copied
            lanes[0].table.admit(point=point, injection=injection, memory=lanes[0].start(point), **host)
            return
        for lane in dict.fromkeys(lanes):
            own = [k for k, other in enumerate(lanes) if other is lane]
            parts = {name: [values[k] for k in own] for name, values in host.items()}
            lane.table.admit(point=point[own], injection=injection[own], memory=lane.start(point[own]), **parts)

    def _first_lane(self, solver: str | None, cap: int, by_label: bool) -> Lane:
        """Where a row starts; the last iteration that its cap allows is never one in low precision."""
        lanes = self._low_precision if cap > 1 and not by_label else self._full_precision
        name = solver or self._default
        return lanes.get(name) or self._full_precision[name]

    def has_one_row(self, solver: str | None) -> bool:
        """Whether there is one call for the whole life of a row, and it is faster than its parts."""
        return (solver or self._default) in self._one_row

    def live(self, inputs: NDArray[np.float32], solver: str | None, tolerance: float, max_iterations: int) -> Lived | None:
        """Inject a row, iterate it until it ends or it is time to look at what has arrived, and read it out, in one call.

        For a row ``[1, *input_shape]`` that is alone, where there is such a call. None if it fails.
        """
        name = solver or self._default
        try:
            one_row, most = self._one_row[name]
            return one_row(inputs, tolerance, min(max_iterations, most))
        except Exception as error:  # ONNX Runtime's exceptions have no common type
            log.warning("one call for a row failed, computing its parts", error=repr(error))
            return None

    def go_on(self, lived: Lived, solver: str | None, **host: Sequence[Any]) -> None:
        """Write a row into a slot that was computed in one call and has not ended; ``host`` as for ``admit``."""
        lane = self._full_precision[solver or self._default]
        rest = {name: torch.from_numpy(array) for name, array in lived.rest.items()}
        point, injection = rest.pop("point"), rest.pop("injection")
        memory = lane.start(point) | rest
        lane.table.admit(point=point, injection=injection, memory=memory, iterations=[lived.iterations], **host)

    def measure(self, clock: Callable[[], float], masking: Masking | None = None) -> None:
        """Find out what computes iterations and rows that are alone fastest, and how many iterations fit between two looks.

        With ``masking``, all lanes iterate that way.
        """
        with torch.inference_mode():
            for name, lane in self._full_precision.items():
                if masking is not None:
                    self._full_precision[name] = MaskedLane(lane, masking, clock)
                else:
                    self._full_precision[name] = faster(lane, clock)
                    self._measure_one_row(name, self._full_precision[name], clock)
            for name, lane in self._low_precision.items():
                lane.full_precision = self._full_precision[name]
                self._low_precision[name] = lane if masking is None else MaskedLane(lane, masking, clock)
        self.lanes = [*self._full_precision.values(), *self._low_precision.values()]

    def _measure_one_row(self, name: str, lane: Lane, clock: Callable[[], float]) -> None:
        """Use one call for rows that are alone if there is one, and it is faster."""
        try:
            one_row = self._backend.one_row(lane.solver, self._residual_norm)
        except OnnxFileError as error:
            log.warning("no call for a whole row", reason=str(error))
            return
        if one_row is None:
            return
        inputs = np.zeros((1, *self.input_shape), np.float32)
        in_parts = shortest(partial(self._live_in_parts, inputs, lane), clock)
        seconds = shortest(partial(one_row, inputs, 0.0, TRIED_ITERATIONS), clock)
        if seconds < in_parts:
            self._one_row[name] = one_row, max(1, int(TRIED_ITERATIONS * MAX_SECONDS_BETWEEN_LOOKS / seconds))

    def _live_in_parts(self, inputs: NDArray[np.float32], lane: Lane) -> None:
        """What a row does that is alone, without one call for it."""
        injection = self._backend.inject(torch.from_numpy(inputs))
        point = self._backend.initial_state(injection)
        limits = {"tolerance": 0.0, "max_iterations": TRIED_ITERATIONS, "deadline": np.inf, "by_label": False}
        lane.table.admit(point=point, injection=injection, memory=lane.start(point), request=0, row=0, **limits)
        while lane.table.iterations[0] < TRIED_ITERATIONS:
            lane.advance(lambda *_: None)
        lane.read_out(np.array([0]), lambda *_: None)
        lane.table.remove(np.array([True]))

    def advance(self, fail: Fail, *, once: bool = False) -> list[tuple[int, int]]:
        """Iterate all rows, each lane until one of its rows has ended or it is time to look at what has arrived.

        Args:
            once: whether to iterate once only.

        Returns:
            For each lane with rows, how many were computed, and how often.
        """
        return [lane.advance(fail, once=once) for lane in self.active_lanes]
