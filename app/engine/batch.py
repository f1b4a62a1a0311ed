"""RunningBatch: all rows that iterate on one device."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.backends import Backend
from app.engine.isolation import Fail
from app.engine.lane import Batching, Lane
from jfb import LabelStop, ResidualNorm
from jfb.solvers import Solver


class RunningBatch:
    """Slots on a device, in lanes: one for each solver, and where there is a rough backend one more, in which its rows begin.

    Args:
        backend: computes the network.
        solvers: by name; the first is taken for rows that name none.
        residual_norm: how movement is measured.
        input_shape: of one row.
        slots: rows that iterate at a time. So many are tried out at once, so that what does not fit into memory fails here.
        batching: ``iteration`` reshapes the batch in every tick. ``lockstep`` is what servers of networks of fixed depth do,
            to be compared with: a batch starts when the one before has ended, and ends as a whole.
        label_stop: judges the rows that end by their label; none do if it is None.
        rough: computes ``step`` in low precision, and is used while rows are far from their tolerance. Not for rows that end
            by their label, which is settled long before they are near.

    Attributes:
        backend, solvers, input_shape, label_stop, slots: the arguments.
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
        batching: Batching = "iteration",
        label_stop: LabelStop | None = None,
        rough: Backend | None = None,
    ) -> None:
        self.backend = backend
        self.solvers = dict(solvers)
        self.input_shape = input_shape
        self.slots = slots
        self.label_stop = label_stop
        lockstep = batching == "lockstep"
        with torch.inference_mode():
            injection = backend.inject(torch.zeros(slots, *input_shape, device=backend.device, dtype=backend.dtype))
            point = backend.initial_state(injection)

            def lane(solver: Solver, backend: Backend, exact: Lane | None = None) -> Lane:
                judges = exact is None and label_stop is not None and label_stop.supports(type(solver))
                stop = label_stop if judges else None
                return Lane(backend, solver, residual_norm, point, injection, lockstep=lockstep, label_stop=stop, exact=exact)

            self._exact = {name: lane(solver, backend) for name, solver in solvers.items()}
            self._rough = {
                name: lane(exact.solver, rough, exact)
                for name, exact in self._exact.items()
                if rough is not None and not exact.solver.splits
            }
            self.classes = backend.readout(point).shape[1]
        self.lanes = [*self._exact.values(), *self._rough.values()]
        self._default = next(iter(solvers))

    @property
    def active(self) -> int:
        return sum(lane.active for lane in self.lanes)

    @property
    def free(self) -> int:
        """Rows that may be admitted now."""
        return self.slots - self.active if all(lane.open for lane in self.lanes) else 0

    def lane(self, solver: str | None, cap: int, by_label: bool = False) -> Lane:
        """Where a row begins; the last iteration that its cap allows is never a rough one."""
        name = solver or self._default
        return self._rough[name] if cap > 1 and not by_label and name in self._rough else self._exact[name]

    def admit(self, lanes: list[Lane], point: Tensor, injection: Tensor, **host: NDArray[np.generic]) -> None:
        """Let rows begin, each in its lane."""
        distinct = list(dict.fromkeys(lanes))
        if len(distinct) == 1:  # as nearly always
            lane = distinct[0]
            lane.table.admit(point=point, injection=injection, memory=lane.start(point), **host)
            return
        for lane in distinct:
            own = np.array([k for k, other in enumerate(lanes) if other is lane])
            index = torch.from_numpy(own)
            begin = point[index]
            lane.table.admit(
                point=begin,
                injection=injection[index],
                memory=lane.start(begin),
                **{name: values[own] for name, values in host.items()},
            )

    def iterate(self, fail: Fail) -> list[int]:
        """Iterate all rows once; return how many there were, lane by lane."""
        sizes = []
        for lane in self.lanes:
            if lane.active:
                lane.iterate(fail)
                sizes.append(lane.active)
        return sizes
