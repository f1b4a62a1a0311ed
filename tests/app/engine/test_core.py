"""The engine's core, driven one tick at a time."""

import numpy as np
import pytest
import torch
from app.engine.request import Job
from torch import Tensor

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.scheduler import Engine
from app.engine_client.errors import QueueFull
from app.engine_client.messages import Moments
from jfb import ImplicitNetwork, ResidualNorm, Status, predict
from jfb.solvers import SOLVERS, Picard, solvers_for
from tests.app.engine.geometric import (
    INJECT,
    READOUT,
    STEP,
    Geometric,
    make_engine,
    make_job,
    state_after,
    tick_until_idle,
)
from tests.jfb.networks import small_mlp, small_resnet


def test_a_row_leaves_when_it_has_converged_and_a_waiting_one_takes_its_slot_before_the_next_iteration() -> None:
    engine = make_engine(slots=2)
    for job in (make_job(1, [2]), make_job(2, [5]), make_job(3, [3])):
        engine.submit(job)
    seen = []
    while engine.busy:
        finished = engine.tick(0.0)
        seen.append(([job.id for job in finished], engine.active_rows, engine.waiting_rows))
    assert seen == [([], 2, 1), ([], 2, 1), ([1], 2, 0), ([], 2, 0), ([], 2, 0), ([2, 3], 0, 0)]


def test_an_answer_is_the_iterate_at_which_the_row_converged() -> None:
    engine = make_engine()
    engine.submit(make_job(1, [3, 7, 1]))
    (job,) = tick_until_idle(engine)
    assert job.iterations == [3, 7, 1]
    assert job.residual == [0.25, 0.5**6, 1.0]
    assert job.status == [Status.CONVERGED] * 3
    assert job.logits[:, 0].tolist() == [state_after(3), state_after(7), state_after(1)]


def test_rows_are_admitted_in_order_of_arrival() -> None:
    engine = make_engine(slots=1)
    for id in range(10):
        engine.submit(make_job(id, [1 + id % 3]))
    assert [job.id for job in tick_until_idle(engine)] == list(range(10))


def test_a_job_with_more_rows_than_slots_is_computed_as_slots_come_free() -> None:
    engine = make_engine(slots=3)
    iterations = [1 + k % 5 for k in range(20)]
    engine.submit(make_job(1, iterations))
    most = 0
    (job,) = [job for _ in range(100) for job in engine.tick(0.0) if (most := max(most, engine.active_rows)) or True]
    assert job.iterations == iterations
    assert most <= 3


@pytest.mark.parametrize("norm", ResidualNorm)
@pytest.mark.parametrize("solver", solvers_for(ImplicitNetwork))
@pytest.mark.parametrize(("network", "shape"), [(small_resnet(), (1, 6, 6)), (small_mlp(), (5,))], ids=["resnet", "mlp"])
def test_every_row_gets_what_predict_gives_it_whoever_shares_the_batch(
    network: ImplicitNetwork, shape: tuple[int, ...], solver: str, norm: ResidualNorm
) -> None:
    rng = np.random.default_rng(0)
    rows = 40
    inputs = rng.uniform(-2, 2, (rows, *shape)).astype(np.float32)
    tolerance = rng.choice([1e-1, 1e-4, 1e-9], rows)
    cap = rng.choice([1, 5, 200], rows, p=[0.1, 0.2, 0.7])
    batch = RunningBatch(TorchBackend(network, dtype=torch.float64), {solver: SOLVERS[solver]()}, norm, shape, slots=7)
    engine = Engine([batch], max_waiting_rows=rows)
    parts = np.split(np.arange(rows), np.sort(rng.choice(rows, 9, replace=False)))
    parts = [part for part in parts if len(part)]
    finished: dict[int, Job] = {}
    for id, part in enumerate(parts):
        engine.submit(Job(id, inputs[part], tolerance[part].tolist(), cap[part].tolist(), [None] * len(part)))
        finished |= {job.id: job for _ in range(rng.integers(4)) for job in engine.tick(0.0)}
    finished |= {job.id: job for job in tick_until_idle(engine)}

    expected = predict(
        network,
        torch.from_numpy(inputs).double(),
        tolerance=torch.from_numpy(tolerance),
        max_iterations=torch.from_numpy(cap),
        residual_norm=norm,
        solver=SOLVERS[solver](),
    )
    jobs = [finished[id] for id in range(len(parts))]
    assert [k for job in jobs for k in job.iterations] == expected.solution.iterations.tolist()
    assert [status for job in jobs for status in job.status] == expected.solution.status
    assert np.concatenate([job.logits for job in jobs]) == pytest.approx(expected.logits.numpy(), abs=1e-9)
    assert [r for job in jobs for r in job.residual] == pytest.approx(expected.solution.residual.tolist(), rel=1e-6)
    assert len(set(expected.solution.iterations.tolist())) > 4, "the rows should not be equally hard"
    assert engine.step_evaluations == engine.iterations == int(expected.solution.iterations.sum())
    assert engine.rows_ended == rows


def test_float32_answers_agree_with_predict_to_1e_5() -> None:
    network = small_resnet().float()
    inputs = np.random.default_rng(1).uniform(0, 1, (50, 1, 6, 6)).astype(np.float32)
    batch = RunningBatch(TorchBackend(network), {"picard": Picard()}, ResidualNorm.RELATIVE, (1, 6, 6), slots=8)
    engine = Engine([batch], max_waiting_rows=50)
    for id in range(50):
        engine.submit(Job(id, inputs[id : id + 1], [1e-1 if id % 2 else 1e-4], [100], [None]))
    jobs = sorted(tick_until_idle(engine), key=lambda job: job.id)
    tolerance = torch.tensor([1e-1 if id % 2 else 1e-4 for id in range(50)])
    expected = predict(network, torch.from_numpy(inputs), tolerance=tolerance, max_iterations=100)
    assert np.concatenate([job.logits for job in jobs]) == pytest.approx(expected.logits.numpy(), abs=1e-5)
    assert [job.status[0] for job in jobs] == expected.solution.status
    # A count may differ by one where rounding falls on the very threshold.
    counts = np.array([job.iterations[0] for job in jobs]) - expected.solution.iterations.numpy()
    assert np.abs(counts).max() <= 1
    assert np.count_nonzero(counts) <= 1


def test_a_cap_of_one_is_exactly_one_iteration() -> None:
    engine = make_engine()
    engine.submit(make_job(1, [9, 9], cap=1))
    (job,) = tick_until_idle(engine)
    assert job.iterations == [1, 1]
    assert job.status == [Status.MAX_ITERATIONS] * 2
    assert engine.step_evaluations == 2


def test_a_row_whose_deadline_passes_answers_with_its_last_iterate() -> None:
    engine = make_engine()
    engine.submit(make_job(1, [50], deadline=10.0))
    for now in (1.0, 2.0, 9.9):
        assert engine.tick(now) == []
    (job,) = engine.tick(10.0)
    assert job.status == [Status.DEADLINE]
    assert job.iterations == [3]
    assert job.residual == [0.25]
    assert job.logits[0, 0] == state_after(3)


def test_a_row_that_has_converged_is_converged_even_when_its_deadline_has_passed_too() -> None:
    engine = make_engine()
    engine.submit(make_job(1, [1], deadline=10.0))
    engine.tick(9.0)
    (job,) = engine.tick(11.0)
    assert job.status == [Status.CONVERGED]


def test_rows_that_wait_past_their_deadline_end_without_an_iteration_and_do_not_wait_for_a_slot() -> None:
    engine = make_engine(slots=1)
    engine.submit(make_job(1, [50]))
    engine.tick(0.0)
    engine.submit(make_job(2, [1, 1], deadline=5.0))
    engine.submit(make_job(3, [1], deadline=7.0))
    engine.tick(0.0)
    assert engine.waiting_rows == 3
    (late,) = engine.tick(5.0)
    assert late.id == 2
    assert late.status == [Status.DEADLINE] * 2
    assert late.iterations == [0, 0]
    assert np.isnan(late.residual).all()
    assert np.isnan(late.logits).all()
    assert engine.waiting_rows == 1
    assert [job.id for job in engine.tick(7.0)] == [3]
    assert engine.waiting_rows == 0


def test_a_job_may_be_partly_done_when_its_deadline_passes() -> None:
    engine = make_engine(slots=2)
    engine.submit(make_job(1, [1, 50, 1, 1, 50, 1], deadline=5.0))
    engine.tick(0.0)
    engine.tick(1.0)
    engine.tick(2.0)
    (job,) = engine.tick(5.0)
    assert job.status == [Status.CONVERGED, Status.DEADLINE, Status.CONVERGED, Status.CONVERGED, *[Status.DEADLINE] * 2]
    assert job.iterations == [1, 3, 1, 1, 0, 0]
    assert not engine.busy


def test_a_cancelled_job_gives_its_slots_away_before_the_next_iteration() -> None:
    engine = make_engine(slots=2)
    engine.submit(make_job(1, [50, 50, 50]))
    engine.tick(0.0)
    engine.submit(make_job(2, [1]))
    engine.submit(make_job(3, [1]))
    engine.cancel(1)
    assert engine.waiting_rows == 2
    engine.tick(0.0)
    assert engine.active_rows == 2
    assert engine.step_evaluations == 4
    assert sorted(job.id for job in engine.tick(0.0)) == [2, 3]
    assert not engine.busy
    assert engine.iterations == engine.step_evaluations


def test_cancelling_what_has_ended_or_never_was_does_nothing() -> None:
    engine = make_engine()
    engine.submit(make_job(1, [1]))
    assert [job.id for job in tick_until_idle(engine)] == [1]
    engine.cancel(1)
    engine.cancel(99)
    engine.submit(make_job(2, [1]))
    assert [job.id for job in tick_until_idle(engine)] == [2]


def test_a_job_that_does_not_fit_into_the_queue_whole_is_refused_and_leaves_no_trace() -> None:
    engine = make_engine(slots=2, max_waiting_rows=5)
    engine.submit(make_job(1, [3] * 4))
    with pytest.raises(QueueFull) as refusal:
        engine.submit(make_job(2, [3] * 2))
    assert refusal.value.waiting_rows == 4
    assert refusal.value.max_waiting_rows == 5
    assert refusal.value.retry_after > 0
    engine.submit(make_job(3, [3]))
    engine.tick(0.0)
    engine.submit(make_job(4, [3] * 2))  # two rows have slots now
    assert sorted(job.id for job in tick_until_idle(engine)) == [1, 3, 4]


def test_a_job_larger_than_the_queue_is_refused() -> None:
    with pytest.raises(QueueFull):
        make_engine(slots=50, max_waiting_rows=5).submit(make_job(1, [1] * 6))


def test_retry_after_is_the_time_that_the_rows_in_excess_take() -> None:
    engine = make_engine(slots=1, max_waiting_rows=100)
    engine.submit(make_job(1, [1] * 100))
    for k in range(50):  # a row a tick, ten ticks a second
        engine.tick(k / 10)
    with pytest.raises(QueueFull) as refusal:
        engine.submit(make_job(2, [1] * 70))  # 50 have been admitted, so 20 of these are too many
    assert refusal.value.retry_after == pytest.approx(2.0, rel=0.1)


def test_a_row_that_diverges_does_so_alone() -> None:
    engine = make_engine()
    engine.submit(make_job(1, [30]))
    engine.submit(make_job(2, [30], ratio=1e38))
    engine.submit(make_job(3, [30]))
    jobs = {job.id: job for job in tick_until_idle(engine)}
    assert jobs[2].status == [Status.DIVERGED]
    assert jobs[2].iterations == [6]  # the first whose residual, 1e190, has no square in float64
    for id in (1, 3):
        assert jobs[id].status == [Status.CONVERGED]
        assert jobs[id].iterations == [30]
        assert jobs[id].logits[0, 0] == state_after(30)


@pytest.mark.parametrize("where", [INJECT, STEP, READOUT])
def test_a_row_that_raises_fails_its_own_request_and_no_other(where: float) -> None:
    engine = make_engine(slots=8)
    engine.submit(make_job(1, [3, 5]))
    engine.tick(0.0)
    engine.submit(make_job(2, [3, 3], raises=where))
    engine.submit(make_job(3, [3, 4]))
    jobs = {job.id: job for job in tick_until_idle(engine)}
    assert jobs[2].failure == f"ArithmeticError: told to raise at {where}"
    for id, iterations in ((1, [3, 5]), (3, [3, 4])):
        assert jobs[id].failure is None
        assert jobs[id].iterations == iterations
        assert jobs[id].logits[:, 0].tolist() == [state_after(k) for k in iterations]
    engine.submit(make_job(4, [2]))
    assert [job.failure for job in tick_until_idle(engine)] == [None]


def test_a_failed_job_takes_its_waiting_rows_with_it() -> None:
    engine = make_engine(slots=2)
    engine.submit(make_job(1, [3] * 10, raises=STEP))
    assert [job.id for job in engine.tick(0.0)] == [1]
    assert engine.waiting_rows == 0
    engine.submit(make_job(2, [3]))
    assert [(job.id, job.failure) for job in tick_until_idle(engine)] == [(2, None)]


def test_a_job_that_fails_at_its_first_answer_gives_up_its_other_slots() -> None:
    engine = make_engine()
    engine.submit(make_job(1, [1, 500], raises=READOUT))
    engine.tick(0.0)
    assert [(job.id, job.failure is None) for job in engine.tick(0.0)] == [(1, False)]
    evaluations = engine.step_evaluations
    engine.submit(make_job(2, [1]))
    engine.tick(0.0)
    assert engine.step_evaluations == evaluations + 1


def test_a_batch_that_is_too_large_for_the_device_is_computed_job_by_job() -> None:
    class Small(TorchBackend):
        armed = False

        def step(self, state: Tensor, injection: Tensor) -> Tensor:
            if self.armed and len(state) > 2:
                raise torch.OutOfMemoryError("too many rows")
            return super().step(state, injection)

    backend = Small(Geometric(), dtype=torch.float64)
    engine = make_engine(slots=6, backend=backend)
    backend.armed = True
    for id in range(3):
        engine.submit(make_job(id, [2, 4]))
    jobs = {job.id: (job.failure, job.iterations) for job in tick_until_idle(engine)}
    assert jobs == {id: (None, [2, 4]) for id in range(3)}


def test_a_lost_device_is_not_taken_for_a_bad_request() -> None:
    class Lost(TorchBackend):
        armed = False

        def step(self, state: Tensor, injection: Tensor) -> Tensor:
            if self.armed:
                raise torch.AcceleratorError("device-side assert", 0)
            return super().step(state, injection)

    backend = Lost(Geometric(), dtype=torch.float64)
    engine = make_engine(backend=backend)
    backend.armed = True
    engine.submit(make_job(1, [2]))
    with pytest.raises(torch.AcceleratorError):
        engine.tick(0.0)


def test_in_lockstep_every_row_pays_for_the_worst_and_nobody_joins_before_the_batch_has_ended() -> None:
    engine = make_engine(slots=2, batching="lockstep")
    for job in (make_job(1, [2]), make_job(2, [5]), make_job(3, [3])):
        engine.submit(job)
    seen = []
    while engine.busy:
        finished = engine.tick(0.0)
        seen.append(([(job.id, job.iterations, job.status) for job in finished], engine.active_rows))
    assert seen == [
        *[([], 2)] * 5,
        ([(1, [5], [Status.CONVERGED]), (2, [5], [Status.CONVERGED])], 1),
        *[([], 1)] * 2,
        ([(3, [3], [Status.CONVERGED])], 0),
    ]
    assert engine.step_evaluations == engine.iterations == 13


def test_a_lockstep_batch_ends_although_a_row_of_it_diverges_and_another_is_cancelled() -> None:
    engine = make_engine(slots=4, batching="lockstep")
    engine.submit(make_job(1, [4]))
    engine.submit(make_job(2, [4], ratio=1e38))
    engine.submit(make_job(3, [9], cap=20))
    engine.tick(0.0)
    engine.cancel(3)
    jobs = {job.id: job.status for job in tick_until_idle(engine)}
    assert jobs == {1: [Status.CONVERGED], 2: [Status.DIVERGED]}


def test_a_lockstep_batch_does_not_wait_for_a_row_that_was_cancelled_long_before_the_others_ended() -> None:
    engine = make_engine(slots=4, batching="lockstep")
    engine.submit(make_job(1, [6]))
    endless = np.array([[1.0, 0.0]], dtype=np.float32)  # moves by 1 in every iteration
    engine.submit(Job(2, endless, [0.5**5], [10_000], [None]))
    engine.tick(0.0)
    engine.cancel(2)
    (job,) = tick_until_idle(engine)
    assert (job.id, job.iterations) == (1, [6])
    assert engine.step_evaluations == 12


def test_a_tolerance_below_what_float32_can_hold_is_kept_until_the_cap() -> None:
    batch = RunningBatch(TorchBackend(Geometric()), {"picard": Picard()}, ResidualNorm.ABSOLUTE, (2,), slots=1)
    engine = Engine([batch], max_waiting_rows=1)
    engine.submit(Job(1, np.array([[0.5, 0]], dtype=np.float32), [1e-300], [7], [None]))
    (job,) = tick_until_idle(engine)
    assert (job.iterations, job.status) == ([7], [Status.MAX_ITERATIONS])


ROW = np.zeros((1, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((0, 2), dtype=np.float32), [], [], []), "inputs: expected at least one row"),
        ((ROW, [1.0, 1.0], [1], [None]), "tolerance: expected 1 values, one per row, got 2"),
        ((ROW, [1.0], [], [None]), "max_iterations: expected 1 values"),
        ((ROW, [1.0], [1], [None, 3.0]), "deadline: expected 1 values"),
        ((ROW, [0.0], [1], [None]), "tolerance: expected positive finite numbers"),
        ((ROW, [float("nan")], [1], [None]), "tolerance: expected positive finite numbers"),
        ((ROW, [float("inf")], [1], [None]), "tolerance: expected positive finite numbers"),
        ((ROW, [1.0], [0], [None]), "max_iterations: expected integers of at least 1"),
        ((ROW, [1.0], [2**63], [None]), "max_iterations: expected integers of at least 1"),
        ((ROW, [1.0], [1], [float("nan")]), "deadline: expected seconds or none"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_with_the_name_of_the_field(
    arguments: tuple[np.ndarray, list[float], list[int], list[float | None]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Job(1, *arguments)


def test_inputs_of_another_shape_are_refused() -> None:
    job = Job(1, np.zeros((1, 3), dtype=np.float32), [1.0], [1], [None])
    with pytest.raises(ValueError, match=r"inputs: expected rows of shape \[2\], got \[3\]"):
        make_engine().submit(job)


def test_the_moments_of_a_job_say_where_its_time_went() -> None:
    seconds = iter(range(100))
    engine = make_engine(slots=1, clock=lambda: float(next(seconds)))
    for job in (make_job(1, [3]), make_job(2, [1, 2])):
        engine.submit(job)
    first, second = tick_until_idle(engine)
    assert first.moments == Moments(submitted=0, admitted=2, injected=3, ended=4, read_out=5)
    # The second job has one row in at a time: the first one's admission counts, and the last one's end.
    assert second.moments == Moments(submitted=1, admitted=6, injected=7, ended=12, read_out=13)


def test_a_job_that_ends_in_the_queue_has_only_the_moment_of_its_submission() -> None:
    engine = make_engine(slots=1)
    engine.submit(make_job(1, [3], deadline=1.0))
    (job,) = engine.tick(2.0)
    assert job.moments.submitted is not None
    assert job.moments == Moments(submitted=job.moments.submitted)


def test_batch_sizes_count_the_ticks_by_powers_of_two() -> None:
    engine = make_engine(slots=5)
    engine.submit(make_job(1, [1, 2, 3, 4, 6]))
    tick_until_idle(engine)
    # Batches of 5, 4, 3, 2, 1 and 1 rows.
    assert engine.batch_sizes == [2, 1, 2, 1]
    assert sum(engine.batch_sizes) == engine.ticks
