"""RunningBatch: the rows that iterate together, and what an error in one of them costs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.backends.backend import Backend, Compute
from app.engine.slots import SlotTable
from jfb import LabelStop, ResidualNorm, residual
from jfb.label_stop import Stability
from jfb.mixed_precision import needs_full_precision, size_in
from jfb.solvers import Memory, Solver

log = structlog.get_logger(__name__)

Fail = Callable[[int, str], None]
"""Called with the number of a request that cannot be computed, and the reason."""


@dataclass(frozen=True)
class _Judged:
    """What the last iteration came to for the m rows, ascending, that may end by their label; logits are ``[m, classes]``."""

    rows: NDArray[np.intp]
    logits: Tensor
    stability: Stability


class Lane:
    """The rows of a batch that one solver proposes for and one backend computes: one call of ``step`` per iteration.

    Args:
        point, injection: any rows, as many as there shall be slots.
        label_stop: judges the rows that end by their label, which no rows here may do if it is None.
        full_precision: if this lane computes in low precision, the one that its rows go on in. No row ends in such a lane: one
            that has come near to its tolerance, its cap or its deadline goes on, so every result is of the full precision.

    Attributes:
        next_state: ``step`` of the points before the last iteration, ``[active, *state_shape]``.
    """

    def __init__(
        self,
        backend: Backend,
        solver: Solver,
        residual_norm: ResidualNorm,
        point: Tensor,
        injection: Tensor,
        *,
        label_stop: LabelStop | None = None,
        full_precision: "Lane | None" = None,
    ) -> None:
        self.solver = solver
        self.label_stop = label_stop
        memory = self.start(point)
        self.table = SlotTable(point, injection, memory)
        self.full_precision = full_precision
        self._backend = backend
        self._residual_norm = residual_norm
        # Tried out at once, so that what does not compute or does not fit into memory fails here.
        self.next_state = backend.evaluate(solver, memory, point, injection)
        solver.propose(memory, point, self.next_state)
        self._size = self._residual = residual(point, self.next_state, residual_norm)
        self._logits = backend.readout(self.next_state).clone() if full_precision is None else self.next_state
        self._judged: _Judged | None = None

    def start(self, point: Tensor) -> Memory:
        """What rows that start at these points remember."""
        return self.solver.start(point) | (self.label_stop.start(point) if self.label_stop is not None else {})

    def iterate(self, fail: Fail) -> None:
        """Evaluate the map once for every row, and move on."""
        table = self.table
        self.next_state = self._evaluate(table, fail)
        self._residual = residual(table.point, self.next_state, self._residual_norm)
        if self.full_precision is not None:
            self._size = size_in(self.next_state, self._residual_norm)
        self._judged = self._judge(self.label_stop, fail) if self.label_stop is not None and table.by_label.any() else None
        table.point.copy_(self.solver.propose(table.memory, table.point, self.next_state))
        table.iterations += 1

    def _evaluate(self, table: SlotTable, fail: Fail) -> Tensor:
        if not self.solver.splits:
            return _isolated(self._backend.step, table.point, table.request, fail, table.point, table.injection)
        names, memory = list(table.memory), tuple(table.memory.values())

        def evaluate(point: Tensor, injection: Tensor, *memory: Tensor) -> Tensor:
            return self._backend.evaluate(self.solver, dict(zip(names, memory, strict=True)), point, injection)

        return _isolated(evaluate, table.point, table.request, fail, table.point, table.injection, changed=memory)

    def _judge(self, label_stop: LabelStop, fail: Fail) -> _Judged:
        """Read out the rows that end by their label, and no others."""
        table = self.table
        rows = np.flatnonzero(table.by_label)
        index = slice(None) if len(rows) == table.active else torch.from_numpy(rows)  # of all rows nothing is copied
        states = self.next_state[index]
        logits = self._readout(rows, states, fail)
        memory = {name: tensor[index] for name, tensor in table.memory.items()}
        stability = label_stop.judge(memory, table.point[index], states, logits)
        for name, tensor in memory.items():
            table.memory[name][index] = tensor
        return _Judged(rows, logits.clone(), stability)  # others may read out before these rows leave

    def _readout(self, rows: NDArray[np.intp], states: Tensor, fail: Fail) -> Tensor:
        return _isolated(self._backend.readout, self._logits, self.table.request[rows], fail, states)

    def wait_for_residual(self) -> NDArray[np.floating]:
        """The residuals of the last iteration, ``[active]``: the host waits for the device here, and nowhere else in a tick."""
        found: NDArray[np.floating] = self._residual.cpu().numpy()
        if self._judged is not None:
            self.table.margin[self._judged.rows] = self._judged.stability.margin.cpu().numpy()
            self.table.bound[self._judged.rows] = self._judged.stability.bound.cpu().numpy()
        return found

    def ended(self, residual: NDArray[np.floating], now: float) -> NDArray[np.bool_]:
        """Which rows are done, ``[active]``: with a settled label, at their cap, ...; none in a lane of low precision."""
        table = self.table
        if self.full_precision is not None:
            return np.zeros(table.active, np.bool_)
        ended: NDArray[np.bool_] = (residual <= table.tolerance) | ~np.isfinite(residual)
        ended |= (table.iterations >= table.max_iterations) | (table.deadline <= now)
        if self._judged is not None:
            ended |= table.margin > table.bound
        return ended

    def read_out(self, rows: NDArray[np.intp], fail: Fail) -> tuple[Tensor, NDArray[np.floating]]:
        """The last states of m rows, and their logits ``[m, classes]`` on the host; what was judged is not read out again."""
        table, states = self.table, self.next_state[torch.from_numpy(rows)]
        if self._judged is not None and table.by_label[rows].all():
            logits = self._judged.logits[torch.from_numpy(np.searchsorted(self._judged.rows, rows))]
        else:
            logits = self._readout(rows, states, fail)
        return states, logits.cpu().numpy()

    def hand_over(self, residual: NDArray[np.floating], ended: NDArray[np.bool_], now: float) -> NDArray[np.bool_]:
        """Give the lane of full precision the rows that low precision cannot bring nearer; return which: they are still here."""
        if self.full_precision is None:
            return np.zeros_like(ended)
        table = self.table
        near = needs_full_precision(residual, self._size.cpu().numpy(), table.tolerance)
        near = (near | (table.iterations >= table.max_iterations - 1) | (table.deadline <= now)) & ~ended
        if near.any():
            self.full_precision.table.admit_from(table, np.flatnonzero(near))
        return near


class RunningBatch:
    """Slots on a device, in lanes: one for each solver, and with low precision one more, in which its rows start.

    Args:
        solvers: by name; the first is taken for rows that name none.
        input_shape: of one row.
        slots: rows that iterate at a time. That many are tried out at once, so that what does not fit into memory fails here.
        label_stop: judges the rows that end by their label; none do if it is None.
        low_precision: computes ``step`` while rows are far from their tolerance. Not for rows that end by their label, which is
            settled long before they are near.

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
    ) -> None:
        self.solvers = dict(solvers)
        self.input_shape = input_shape
        self.slots = slots
        self.label_stop = label_stop
        self._backend = backend
        with torch.inference_mode():
            injection = backend.inject(torch.zeros(slots, *input_shape, device=backend.device, dtype=backend.dtype))
            point = backend.initial_state(injection)
            self._full_precision = {}
            for name, solver in solvers.items():
                stop = label_stop if label_stop is not None and label_stop.supports(type(solver)) else None
                self._full_precision[name] = Lane(backend, solver, residual_norm, point, injection, label_stop=stop)
            self._low_precision = {
                name: Lane(low_precision, lane.solver, residual_norm, point, injection, full_precision=lane)
                for name, lane in self._full_precision.items()
                if low_precision is not None and not lane.solver.splits
            }
            self.classes = backend.readout(point).shape[1]
        self.lanes = [*self._full_precision.values(), *self._low_precision.values()]
        self._default = next(iter(solvers))

    @property
    def active(self) -> int:
        return sum(lane.table.active for lane in self.lanes)

    @property
    def active_lanes(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.table.active]

    def offers_label_stop(self, solver: str | None) -> bool:
        """Whether rows of a solver may end by their label."""
        return self._full_precision[solver or self._default].label_stop is not None

    def inject(self, inputs: NDArray[np.float32], requests: NDArray[np.int64], fail: Fail) -> Tensor:
        """The injection of rows whose requests have these numbers."""
        tensor = torch.from_numpy(inputs).to(self._backend.device, self._backend.dtype)
        return _isolated(self._backend.inject, self.lanes[0].table.injection, requests, fail, tensor)

    def initial_state(self, injection: Tensor, requests: NDArray[np.int64], fail: Fail) -> Tensor:
        """Where those rows start unless there is a better point."""
        return _isolated(self._backend.initial_state, self.lanes[0].table.point, requests, fail, injection)

    def admit(self, solvers: list[str | None], point: Tensor, injection: Tensor, **host: NDArray[np.generic]) -> None:
        """Write rows into free slots, each into its lane: ``host`` names what the slot table keeps on the host."""
        limits = zip(solvers, host["max_iterations"].tolist(), host["by_label"].tolist(), strict=True)
        lanes = [self._first_lane(*row) for row in limits]
        distinct = dict.fromkeys(lanes)
        for lane in distinct:
            own = [k for k, other in enumerate(lanes) if other is lane]
            index = own if len(distinct) > 1 else slice(None)  # nearly always all of them, and nothing is copied
            parts = {name: values[index] for name, values in host.items()}
            lane.table.admit(point=point[index], injection=injection[index], memory=lane.start(point[index]), **parts)

    def _first_lane(self, solver: str | None, cap: int, by_label: bool) -> Lane:
        """Where a row starts; the last iteration that its cap allows is never one in low precision."""
        lanes = self._low_precision if cap > 1 and not by_label else self._full_precision
        name = solver or self._default
        return lanes.get(name) or self._full_precision[name]

    def iterate(self, fail: Fail) -> list[int]:
        """Iterate all rows once; return how many there were, lane by lane."""
        lanes = self.active_lanes
        for lane in lanes:
            lane.iterate(fail)
        return [lane.table.active for lane in lanes]


def _isolated(
    compute: Compute, like: Tensor, requests: NDArray[np.int64], fail: Fail, *rows: Tensor, changed: tuple[Tensor, ...] = ()
) -> Tensor:
    """Compute rows; if that raises, compute each request's rows alone, and fail the requests that raise, with NaN as their rows.

    ``compute`` maps ``rows``, then ``changed``, which it may change in place, to rows like ``like``; they are of ``requests``.
    """
    try:
        return compute(*rows, *changed)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        log.warning("batch failed, computing its requests one by one", error=repr(error), rows=len(requests))
    result = like.new_full((len(requests), *like.shape[1:]), math.nan)
    for number in dict.fromkeys(requests.tolist()):
        own = torch.from_numpy(np.flatnonzero(requests == number))
        parts = [tensor[own] for tensor in changed]
        try:
            result[own] = compute(*(tensor[own] for tensor in rows), *parts)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            fail(number, f"{type(error).__name__}: {error}")
        for tensor, part in zip(changed, parts, strict=True):
            tensor[own] = part
    return result
