"""Warm starts: the rows of a session start where its last ones ended."""

import numpy as np
import pytest
import torch
from app.engine.request import Job

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.scheduler import Engine
from app.engine.warm_starts import Sessions
from jfb import ImplicitNetwork, ResidualNorm, Status, predict
from jfb.solvers import SOLVERS, solvers_for
from tests.app.engine.geometric import make_engine, make_job, tick_until_idle
from tests.jfb.networks import small_resnet

PLENTY = 10**6


def points(rows: int, value: float = 0.0) -> torch.Tensor:
    return torch.full((rows, 5), value)  # 20 bytes a row


def test_a_session_has_the_points_that_were_kept_last_if_the_rows_are_as_many() -> None:
    sessions = Sessions(PLENTY, 60)
    sessions.keep("a", points(2, 1.0), 0.0)
    sessions.keep("a", points(2, 2.0), 1.0)
    sessions.keep("b", points(2, 3.0), 1.0)
    kept = sessions.recall("a", 2, 2.0)
    assert kept is not None
    assert (kept == 2.0).all()
    assert sessions.recall("a", 3, 2.0) is None
    assert sessions.recall("c", 2, 2.0) is None


def test_a_session_expires_when_it_is_not_used() -> None:
    sessions = Sessions(PLENTY, 60)
    sessions.keep("a", points(1), 0.0)
    sessions.keep("b", points(1), 30.0)
    assert sessions.recall("a", 1, 59.9) is not None
    assert sessions.recall("a", 1, 60.0) is None
    assert sessions.recall("b", 1, 60.0) is not None
    assert len(sessions) == 1


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    sessions = Sessions(100, 60)
    for k in range(50):
        sessions.keep(str(k), points(2), float(k) / 10)
    assert len(sessions) == 2
    assert sessions.recall("49", 2, 5.0) is not None
    assert sessions.recall("47", 2, 5.0) is None
    sessions.keep("too large", points(6), 5.0)
    assert sessions.recall("too large", 6, 5.0) is None
    assert len(sessions) == 2


def test_rows_of_a_session_start_where_its_last_ones_ended() -> None:
    engine = make_engine(sessions=Sessions(PLENTY, 60))
    engine.submit(make_job(1, [5, 8], session="a"))
    (cold,) = tick_until_idle(engine)
    assert cold.iterations == [5, 8]
    engine.submit(make_job(2, [9, 9], session="a"))
    engine.submit(make_job(3, [9, 9], session="b"))
    engine.submit(make_job(4, [9, 9]))
    again = {job.id: job for job in tick_until_idle(engine)}
    # The first rows went k iterations already, and the last of those is not made again.
    assert again[2].iterations == [9 - 5, 9 - 8]
    assert again[2].residual == [0.5**8, 0.5**8]
    assert again[2].status == [Status.CONVERGED] * 2
    assert again[3].iterations == again[4].iterations == [9, 9]
    assert again[2].logits.tolist() == again[3].logits.tolist() == again[4].logits.tolist()


def test_more_rows_than_slots_start_warm_each_from_its_own() -> None:
    engine = make_engine(slots=2, sessions=Sessions(PLENTY, 60))
    iterations = [3, 7, 4, 5, 6]
    engine.submit(make_job(1, iterations, session="a"))
    tick_until_idle(engine)
    engine.submit(make_job(2, [10] * 5, session="a"))
    (job,) = tick_until_idle(engine)
    assert job.iterations == [10 - k for k in iterations]


def test_a_diverged_row_makes_its_session_start_from_nothing() -> None:
    engine = make_engine(sessions=Sessions(PLENTY, 60))
    engine.submit(make_job(1, [5], session="a"))
    tick_until_idle(engine)
    engine.submit(make_job(2, [5], session="a", ratio=2.0, cap=2000))
    (diverged,) = tick_until_idle(engine)
    assert diverged.status == [Status.DIVERGED]
    engine.submit(make_job(3, [5], session="a"))
    (job,) = tick_until_idle(engine)
    assert job.iterations == [5]


def test_a_request_without_an_iteration_leaves_its_session_as_it_was() -> None:
    engine = make_engine(sessions=Sessions(PLENTY, 60))
    engine.submit(make_job(1, [5], session="a"))
    tick_until_idle(engine)
    engine.submit(make_job(2, [9], session="a", deadline=-1.0))
    (late,) = engine.tick(0.0)
    assert late.iterations == [0]
    engine.submit(make_job(3, [9], session="a"))
    (job,) = tick_until_idle(engine)
    assert job.iterations == [4]


@pytest.mark.parametrize("solver", solvers_for(ImplicitNetwork))
def test_a_warm_start_gives_the_same_answer_within_the_tolerance_in_fewer_iterations(solver: str) -> None:
    network = small_resnet()
    batch = RunningBatch(
        TorchBackend(network, dtype=torch.float64), {solver: SOLVERS[solver]()}, ResidualNorm.RELATIVE, (1, 6, 6), slots=4
    )
    engine = Engine([batch], max_waiting_rows=40, sessions=Sessions(PLENTY, 60))
    rng = np.random.default_rng(0)
    picture, drift = rng.uniform(0, 1, (2, 2, 1, 6, 6))
    cold = warm = 0
    for k in range(12):
        inputs = (picture + 0.002 * k * drift).astype(np.float32)
        engine.submit(Job(k, inputs, [1e-6] * 2, [500] * 2, [None] * 2, session="film"))
        (job,) = tick_until_idle(engine)
        expected = predict(
            network, torch.from_numpy(inputs).double(), tolerance=1e-6, max_iterations=500, solver=SOLVERS[solver]()
        )
        assert job.status == [Status.CONVERGED] * 2
        assert max(job.residual) <= 1e-6
        assert job.logits == pytest.approx(expected.logits.numpy(), abs=1e-4)
        if k:
            cold += int(expected.solution.iterations.sum())
            warm += sum(job.iterations)
    assert warm < 0.9 * cold
