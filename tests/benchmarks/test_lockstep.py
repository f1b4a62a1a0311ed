"""Lockstep batching, the baseline of the benchmarks."""

import numpy as np
import torch

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from benchmarks.lockstep import LockstepScheduler
from jfb import ResidualNorm, Status
from jfb.solvers import Picard
from tests.app.engine.geometric import Geometric, make_request, tick_until_idle
from tests.app.engine.requests import running_request


def lockstep(slots: int) -> LockstepScheduler:
    """A lockstep scheduler of the geometric network, in float64."""
    backend = TorchBackend(Geometric(), dtype=torch.float64)
    batch = RunningBatch(backend, {"picard": Picard()}, ResidualNorm.ABSOLUTE, (2,), slots=slots)
    return LockstepScheduler(batch, max_waiting_rows=100)


def test_all_rows_iterate_as_long_as_the_slowest_and_no_row_joins_before_the_batch_has_ended() -> None:
    scheduler = lockstep(slots=2)
    for request in (make_request(1, [2]), make_request(2, [5]), make_request(3, [3])):
        scheduler.submit(request)
    seen = []
    while scheduler.busy:
        finished = scheduler.tick(0.0)
        seen.append(([(request.number, request.iterations, request.status) for request in finished], scheduler.active_rows))
    assert seen == [
        *[([], 2)] * 5,
        ([(1, [5], [Status.CONVERGED]), (2, [5], [Status.CONVERGED])], 1),
        *[([], 1)] * 2,
        ([(3, [3], [Status.CONVERGED])], 0),
    ]
    assert scheduler.step_evaluations == scheduler.iterations == 13


def test_a_lockstep_batch_ends_when_one_row_diverges_and_another_is_cancelled() -> None:
    scheduler = lockstep(slots=4)
    scheduler.submit(make_request(1, [4]))
    scheduler.submit(make_request(2, [4], ratio=1e38))
    scheduler.submit(make_request(3, [9], cap=20))
    scheduler.tick(0.0)
    scheduler.cancel(3)
    requests = {request.number: request.status for request in tick_until_idle(scheduler)}
    assert requests == {1: [Status.CONVERGED], 2: [Status.DIVERGED]}


def test_a_lockstep_batch_does_not_wait_for_a_row_that_was_cancelled_long_before_the_others_ended() -> None:
    scheduler = lockstep(slots=4)
    scheduler.submit(make_request(1, [6]))
    endless = np.array([[1.0, 0.0]], dtype=np.float32)  # moves by 1 in every iteration
    scheduler.submit(running_request(2, endless, [0.5**5], [10_000], [None]))
    scheduler.tick(0.0)
    scheduler.cancel(2)
    (request,) = tick_until_idle(scheduler)
    assert (request.number, request.iterations) == (1, [6])
    assert scheduler.step_evaluations == 12
