"""Warm starts: the rows of a session start where its last ones ended."""

import numpy as np
import pytest
import torch

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.scheduler import Scheduler
from app.engine.warm_starts import WarmStarts
from jfb import ImplicitNetwork, ResidualNorm, Status, predict
from jfb.solvers import SOLVERS, solvers_for
from tests.app.engine.geometric import make_request, make_scheduler, tick_until_idle
from tests.app.engine.requests import running_request
from tests.jfb.networks import small_resnet

PLENTY = 10**6


def points(rows: int, value: float = 0.0) -> torch.Tensor:
    return torch.full((rows, 5), value)  # 20 bytes a row


def test_a_session_has_the_points_that_were_kept_last_if_the_rows_are_as_many() -> None:
    sessions = WarmStarts(PLENTY, 60)
    sessions.keep("a", points(2, 1.0), 0.0)
    sessions.keep("a", points(2, 2.0), 1.0)
    sessions.keep("b", points(2, 3.0), 1.0)
    kept = sessions.recall("a", 2, 2.0)
    assert kept is not None
    assert (kept == 2.0).all()
    assert sessions.recall("a", 3, 2.0) is None
    assert sessions.recall("c", 2, 2.0) is None


def test_a_session_expires_when_it_is_not_used() -> None:
    sessions = WarmStarts(PLENTY, 60)
    sessions.keep("a", points(1), 0.0)
    sessions.keep("b", points(1), 30.0)
    assert sessions.recall("a", 1, 59.9) is not None
    assert sessions.recall("a", 1, 60.0) is None
    assert sessions.recall("b", 1, 60.0) is not None
    assert len(sessions) == 1


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    sessions = WarmStarts(100, 60)
    for k in range(50):
        sessions.keep(str(k), points(2), float(k) / 10)
    assert len(sessions) == 2
    assert sessions.recall("49", 2, 5.0) is not None
    assert sessions.recall("47", 2, 5.0) is None
    sessions.keep("too large", points(6), 5.0)
    assert sessions.recall("too large", 6, 5.0) is None
    assert len(sessions) == 2


def test_rows_of_a_session_start_where_its_last_ones_ended() -> None:
    scheduler = make_scheduler(warm_starts=WarmStarts(PLENTY, 60))
    scheduler.submit(make_request(1, [5, 8], session="a"))
    (cold,) = tick_until_idle(scheduler)
    assert cold.iterations == [5, 8]
    scheduler.submit(make_request(2, [9, 9], session="a"))
    scheduler.submit(make_request(3, [9, 9], session="b"))
    scheduler.submit(make_request(4, [9, 9]))
    again = {request.number: request for request in tick_until_idle(scheduler)}
    # The first rows went k iterations already, and the last of those is not made again.
    assert again[2].iterations == [9 - 5, 9 - 8]
    assert again[2].residual == [0.5**8, 0.5**8]
    assert again[2].status == [Status.CONVERGED] * 2
    assert again[3].iterations == again[4].iterations == [9, 9]
    assert again[2].logits.tolist() == again[3].logits.tolist() == again[4].logits.tolist()


def test_more_rows_than_slots_start_warm_each_from_its_own() -> None:
    scheduler = make_scheduler(slots=2, warm_starts=WarmStarts(PLENTY, 60))
    iterations = [3, 7, 4, 5, 6]
    scheduler.submit(make_request(1, iterations, session="a"))
    tick_until_idle(scheduler)
    scheduler.submit(make_request(2, [10] * 5, session="a"))
    (request,) = tick_until_idle(scheduler)
    assert request.iterations == [10 - k for k in iterations]


def test_a_diverged_row_makes_its_session_start_from_nothing() -> None:
    scheduler = make_scheduler(warm_starts=WarmStarts(PLENTY, 60))
    scheduler.submit(make_request(1, [5], session="a"))
    tick_until_idle(scheduler)
    scheduler.submit(make_request(2, [5], session="a", ratio=2.0, cap=2000))
    (diverged,) = tick_until_idle(scheduler)
    assert diverged.status == [Status.DIVERGED]
    scheduler.submit(make_request(3, [5], session="a"))
    (request,) = tick_until_idle(scheduler)
    assert request.iterations == [5]


def test_a_request_without_an_iteration_leaves_its_session_as_it_was() -> None:
    scheduler = make_scheduler(warm_starts=WarmStarts(PLENTY, 60))
    scheduler.submit(make_request(1, [5], session="a"))
    tick_until_idle(scheduler)
    scheduler.submit(make_request(2, [9], session="a", deadline=-1.0))
    (late,) = scheduler.tick(0.0)
    assert late.iterations == [0]
    scheduler.submit(make_request(3, [9], session="a"))
    (request,) = tick_until_idle(scheduler)
    assert request.iterations == [4]


@pytest.mark.parametrize("solver", solvers_for(ImplicitNetwork))
def test_a_warm_start_gives_the_same_answer_within_the_tolerance_in_fewer_iterations(solver: str) -> None:
    network = small_resnet()
    batch = RunningBatch(
        TorchBackend(network, dtype=torch.float64), {solver: SOLVERS[solver]()}, ResidualNorm.RELATIVE, (1, 6, 6), slots=4
    )
    scheduler = Scheduler(batch, max_waiting_rows=40, warm_starts=WarmStarts(PLENTY, 60))
    rng = np.random.default_rng(0)
    picture, drift = rng.uniform(0, 1, (2, 2, 1, 6, 6))
    cold = warm = 0
    for k in range(12):
        inputs = (picture + 0.002 * k * drift).astype(np.float32)
        scheduler.submit(running_request(k, inputs, [1e-6] * 2, [500] * 2, [None] * 2, session="film"))
        (request,) = tick_until_idle(scheduler)
        expected = predict(
            network, torch.from_numpy(inputs).double(), tolerance=1e-6, max_iterations=500, solver=SOLVERS[solver]()
        )
        assert request.status == [Status.CONVERGED] * 2
        assert max(request.residual) <= 1e-6
        assert request.logits == pytest.approx(expected.logits.numpy(), abs=1e-4)
        if k:
            cold += int(expected.solution.iterations.sum())
            warm += sum(request.iterations)
    assert warm < 0.9 * cold
