"""Rows that are advanced several iterations at a time: each is answered as by ``jfb.predict``, and what is in vain is counted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.lane import MAX_SECONDS_BETWEEN_LOOKS
from app.engine.masked import Masking
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from jfb import ResidualNorm, predict
from jfb.solvers import Anderson, Mixing, Picard, Solver
from tests.app.engine.geometric import every, make_request, make_scheduler, tick_until_idle
from tests.app.engine.requests import running_request
from tests.jfb.networks import small_mlp

NETWORK = small_mlp()
SOLVERS: dict[str, Solver] = {
    "picard": Picard(),
    "anderson": Anderson(),
    "mixing": Mixing(torch.eye(6, dtype=torch.float64), torch.full((6,), 0.3, dtype=torch.float64), 0.8),
}
INPUTS = np.random.default_rng(0).uniform(-2, 2, (40, 5)).astype(np.float32)


def advancing(scheduler: Scheduler, iterations: int, masking: Masking | None = None) -> Scheduler:
    """Let a scheduler look at its rows only after that many iterations."""
    scheduler._batch.measure(every(0.999 * MAX_SECONDS_BETWEEN_LOOKS / iterations), masking)
    return scheduler


MASKINGS = [None, Masking(), Masking((1, 2), (1, 4, 8)), Masking(blocks=(1, 3), reads_out=True)]


A_ROW = st.tuples(
    st.integers(0, len(INPUTS) - 1),
    st.sampled_from([1e-1, 1e-3, 1e-8]),
    st.integers(1, 40),
    st.sampled_from(list(SOLVERS)),
    st.integers(0, 3),  # ticks before the next request
    st.booleans(),  # whether it is cancelled then
)


@settings(max_examples=60, deadline=None)
@given(st.lists(A_ROW, min_size=1, max_size=20), st.integers(1, 9), st.sampled_from(MASKINGS))
def test_every_row_gets_what_predict_gives_it_however_many_iterations_are_between_two_looks(
    rows: list[tuple[int, float, int, str, int, bool]], iterations: int, masking: Masking | None
) -> None:
    batch = RunningBatch(TorchBackend(NETWORK, dtype=torch.float64), SOLVERS, ResidualNorm.RELATIVE, (5,), slots=4)
    scheduler = advancing(Scheduler(batch, max_waiting_rows=len(rows)), iterations, masking)
    finished: dict[int, RunningRequest] = {}
    cancelled = set()
    for id, (index, tolerance, cap, solver, ticks, cancels) in enumerate(rows):
        scheduler.submit(running_request(id, INPUTS[index : index + 1], [tolerance], [cap], [None], solver=solver))
        finished |= {request.number: request for _ in range(ticks) for request in scheduler.tick(0.0)}
        if cancels and scheduler.cancel(id):
            cancelled.add(id)
    finished |= {request.number: request for request in tick_until_idle(scheduler)}
    assert finished.keys() == set(range(len(rows))) - cancelled

    for id, request in finished.items():
        index, tolerance, cap, solver, *_ = rows[id]
        inputs = torch.from_numpy(INPUTS[index : index + 1]).double()
        expected = predict(NETWORK, inputs, tolerance=tolerance, max_iterations=cap, solver=SOLVERS[solver])
        assert request.iterations == expected.solution.iterations.tolist()
        assert request.status == expected.solution.status
        assert request.residual == pytest.approx(expected.solution.residual.tolist(), rel=1e-6)
        assert request.logits == pytest.approx(expected.logits.numpy(), abs=1e-9)
    assert scheduler.step_evaluations == scheduler.iterations + scheduler.wasted_iterations
    assert masking is not None or scheduler.wasted_iterations == 0


def test_the_engine_looks_when_a_row_ends_and_after_as_many_iterations_as_fit() -> None:
    scheduler = advancing(make_scheduler(slots=4), 5)
    scheduler.submit(make_request(1, [3]))
    scheduler.submit(make_request(2, [12]))
    ticks = [scheduler.ticks]
    while scheduler.busy:
        scheduler.tick(0.0)
        ticks.append(scheduler.ticks)
    assert np.diff(ticks).tolist() == [3, 5, 4, 0]


def test_a_streamed_row_is_looked_at_after_each_iteration() -> None:
    scheduler = advancing(make_scheduler(slots=4), 5)
    scheduler.submit(make_request(1, [4], streamed=True))
    found = []
    while scheduler.busy:
        scheduler.tick(0.0)
        found += [iteration.iterations for _, iteration in scheduler.take_iterations()]
    assert found == [[1], [2], [3], [4]]
