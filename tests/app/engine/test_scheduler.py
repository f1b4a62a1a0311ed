"""The engine's core, driven one tick at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine_client.errors import QueueFull
from app.engine_client.messages import Request, Timings
from jfb import ImplicitNetwork, ResidualNorm, Status, predict
from jfb.solvers import SOLVERS, Picard, solvers_for
from tests.app.engine.geometric import (
    INJECT,
    READOUT,
    STEP,
    Geometric,
    make_request,
    make_scheduler,
    state_after,
    tick_until_idle,
)
from tests.app.engine.requests import running_request
from tests.jfb.networks import small_mlp, small_resnet


def test_a_row_leaves_when_it_has_converged_and_a_waiting_one_takes_its_slot_before_the_next_iteration() -> None:
    scheduler = make_scheduler(slots=2)
    for request in (make_request(1, [2]), make_request(2, [5]), make_request(3, [3])):
        scheduler.submit(request)
    seen = []
    while scheduler.busy:
        finished = scheduler.tick(0.0)
        seen.append((sorted(request.number for request in finished), scheduler.active_rows, scheduler.waiting_rows))
    assert seen == [([], 2, 1), ([], 2, 1), ([1], 2, 0), ([], 2, 0), ([], 2, 0), ([2, 3], 0, 0)]


def test_an_answer_is_the_iterate_at_which_the_row_converged() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(1, [3, 7, 1]))
    (request,) = tick_until_idle(scheduler)
    assert request.iterations == [3, 7, 1]
    assert request.residual == [0.25, 0.5**6, 1.0]
    assert request.status == [Status.CONVERGED] * 3
    assert request.logits[:, 0].tolist() == [state_after(3), state_after(7), state_after(1)]


def test_rows_are_admitted_in_order_of_arrival() -> None:
    scheduler = make_scheduler(slots=1)
    for id in range(10):
        scheduler.submit(make_request(id, [1 + id % 3]))
    assert [request.number for request in tick_until_idle(scheduler)] == list(range(10))


def test_a_request_with_more_rows_than_slots_is_computed_as_slots_come_free() -> None:
    scheduler = make_scheduler(slots=3)
    iterations = [1 + k % 5 for k in range(20)]
    scheduler.submit(make_request(1, iterations))
    most = 0
    (request,) = [
        request for _ in range(100) for request in scheduler.tick(0.0) if (most := max(most, scheduler.active_rows)) or True
    ]
    assert request.iterations == iterations
    assert most <= 3


@pytest.mark.parametrize("norm", ResidualNorm)
@pytest.mark.parametrize("solver", solvers_for(ImplicitNetwork))
@pytest.mark.parametrize(("network", "shape"), [(small_resnet(), (1, 6, 6)), (small_mlp(), (5,))], ids=["resnet", "mlp"])
def test_every_row_gets_what_predict_gives_it_in_any_company(
    network: ImplicitNetwork, shape: tuple[int, ...], solver: str, norm: ResidualNorm
) -> None:
    rng = np.random.default_rng(0)
    rows = 40
    inputs = rng.uniform(-2, 2, (rows, *shape)).astype(np.float32)
    tolerance = rng.choice([1e-1, 1e-4, 1e-9], rows)
    cap = rng.choice([1, 5, 200], rows, p=[0.1, 0.2, 0.7])
    batch = RunningBatch(TorchBackend(network, dtype=torch.float64), {solver: SOLVERS[solver]()}, norm, shape, slots=7)
    scheduler = Scheduler(batch, max_waiting_rows=rows)
    parts = np.split(np.arange(rows), np.sort(rng.choice(rows, 9, replace=False)))
    parts = [part for part in parts if len(part)]
    finished: dict[int, RunningRequest] = {}
    for id, part in enumerate(parts):
        scheduler.submit(running_request(id, inputs[part], tolerance[part].tolist(), cap[part].tolist(), [None] * len(part)))
        finished |= {request.number: request for _ in range(rng.integers(4)) for request in scheduler.tick(0.0)}
    finished |= {request.number: request for request in tick_until_idle(scheduler)}

    expected = predict(
        network,
        torch.from_numpy(inputs).double(),
        tolerance=torch.from_numpy(tolerance),
        max_iterations=torch.from_numpy(cap),
        residual_norm=norm,
        solver=SOLVERS[solver](),
    )
    requests = [finished[id] for id in range(len(parts))]
    assert [k for request in requests for k in request.iterations] == expected.solution.iterations.tolist()
    assert [status for request in requests for status in request.status] == expected.solution.status
    assert np.concatenate([request.logits for request in requests]) == pytest.approx(expected.logits.numpy(), abs=1e-9)
    assert [r for request in requests for r in request.residual] == pytest.approx(expected.solution.residual.tolist(), rel=1e-6)
    assert len(set(expected.solution.iterations.tolist())) > 4, "the rows should not be equally hard"
    assert scheduler.step_evaluations == scheduler.iterations == int(expected.solution.iterations.sum())
    assert scheduler.rows_ended == rows


def test_float32_answers_agree_with_predict_to_1e_5() -> None:
    network = small_resnet().float()
    inputs = np.random.default_rng(1).uniform(0, 1, (50, 1, 6, 6)).astype(np.float32)
    batch = RunningBatch(TorchBackend(network), {"picard": Picard()}, ResidualNorm.RELATIVE, (1, 6, 6), slots=8)
    scheduler = Scheduler(batch, max_waiting_rows=50)
    for id in range(50):
        scheduler.submit(running_request(id, inputs[id : id + 1], [1e-1 if id % 2 else 1e-4], [100], [None]))
    requests = sorted(tick_until_idle(scheduler), key=lambda request: request.number)
    tolerance = torch.tensor([1e-1 if id % 2 else 1e-4 for id in range(50)])
    expected = predict(network, torch.from_numpy(inputs), tolerance=tolerance, max_iterations=100)
    assert np.concatenate([request.logits for request in requests]) == pytest.approx(expected.logits.numpy(), abs=1e-5)
    assert [request.status[0] for request in requests] == expected.solution.status
    # A count may differ by one where rounding falls on the very threshold.
    counts = np.array([request.iterations[0] for request in requests]) - expected.solution.iterations.numpy()
    assert np.abs(counts).max() <= 1
    assert np.count_nonzero(counts) <= 1


def test_a_cap_of_one_is_exactly_one_iteration() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(1, [9, 9], cap=1))
    (request,) = tick_until_idle(scheduler)
    assert request.iterations == [1, 1]
    assert request.status == [Status.MAX_ITERATIONS] * 2
    assert scheduler.step_evaluations == 2


def test_a_row_whose_deadline_passes_answers_with_its_last_iterate() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(1, [50], deadline=10.0))
    for now in (1.0, 2.0, 9.9):
        assert scheduler.tick(now) == []
    (request,) = scheduler.tick(10.0)
    assert request.status == [Status.DEADLINE]
    assert request.iterations == [3]
    assert request.residual == [0.25]
    assert request.logits[0, 0] == state_after(3)


def test_a_row_that_has_converged_is_converged_even_when_its_deadline_has_passed_too() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(1, [1], deadline=10.0))
    scheduler.tick(9.0)
    (request,) = scheduler.tick(11.0)
    assert request.status == [Status.CONVERGED]


def test_rows_that_wait_past_their_deadline_end_without_an_iteration_and_do_not_wait_for_a_slot() -> None:
    scheduler = make_scheduler(slots=1)
    scheduler.submit(make_request(1, [50]))
    scheduler.tick(0.0)
    scheduler.submit(make_request(2, [1, 1], deadline=5.0))
    scheduler.submit(make_request(3, [1], deadline=7.0))
    scheduler.tick(0.0)
    assert scheduler.waiting_rows == 3
    (late,) = scheduler.tick(5.0)
    assert late.number == 2
    assert late.status == [Status.DEADLINE] * 2
    assert late.iterations == [0, 0]
    assert np.isnan(late.residual).all()
    assert np.isnan(late.logits).all()
    assert scheduler.waiting_rows == 1
    assert [request.number for request in scheduler.tick(7.0)] == [3]
    assert scheduler.waiting_rows == 0


def test_a_request_may_be_partly_done_when_its_deadline_passes() -> None:
    scheduler = make_scheduler(slots=2)
    scheduler.submit(make_request(1, [1, 50, 1, 1, 50, 1], deadline=5.0))
    scheduler.tick(0.0)
    scheduler.tick(1.0)
    scheduler.tick(2.0)
    (request,) = scheduler.tick(5.0)
    assert request.status == [Status.CONVERGED, Status.DEADLINE, Status.CONVERGED, Status.CONVERGED, *[Status.DEADLINE] * 2]
    assert request.iterations == [1, 3, 1, 1, 0, 0]
    assert not scheduler.busy


def test_a_cancelled_request_gives_its_slots_away_before_the_next_iteration() -> None:
    scheduler = make_scheduler(slots=2)
    scheduler.submit(make_request(1, [50, 50, 50]))
    scheduler.tick(0.0)
    scheduler.submit(make_request(2, [1]))
    scheduler.submit(make_request(3, [1]))
    scheduler.cancel(1)
    assert scheduler.waiting_rows == 2
    scheduler.tick(0.0)
    assert scheduler.active_rows == 2
    assert scheduler.step_evaluations == 4
    assert sorted(request.number for request in scheduler.tick(0.0)) == [2, 3]
    assert not scheduler.busy
    assert scheduler.iterations == scheduler.step_evaluations


def test_cancelling_what_has_ended_or_never_was_does_nothing() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(1, [1]))
    assert [request.number for request in tick_until_idle(scheduler)] == [1]
    scheduler.cancel(1)
    scheduler.cancel(99)
    scheduler.submit(make_request(2, [1]))
    assert [request.number for request in tick_until_idle(scheduler)] == [2]


def test_a_request_that_does_not_fit_into_the_queue_whole_is_rejected_and_leaves_no_trace() -> None:
    scheduler = make_scheduler(slots=2, max_waiting_rows=5)
    scheduler.submit(make_request(1, [3] * 4))
    with pytest.raises(QueueFull) as refusal:
        scheduler.submit(make_request(2, [3] * 2))
    assert refusal.value.waiting_rows == 4
    assert refusal.value.max_waiting_rows == 5
    assert refusal.value.retry_after > 0
    scheduler.submit(make_request(3, [3]))
    scheduler.tick(0.0)
    scheduler.submit(make_request(4, [3] * 2))  # two rows have slots now
    assert sorted(request.number for request in tick_until_idle(scheduler)) == [1, 3, 4]


def test_a_request_larger_than_the_queue_is_rejected() -> None:
    with pytest.raises(QueueFull):
        make_scheduler(slots=50, max_waiting_rows=5).submit(make_request(1, [1] * 6))


def test_retry_after_is_the_time_that_the_rows_in_excess_take() -> None:
    scheduler = make_scheduler(slots=1, max_waiting_rows=100)
    scheduler.submit(make_request(1, [1] * 100))
    for k in range(50):  # a row a tick, ten ticks a second
        scheduler.tick(k / 10)
    with pytest.raises(QueueFull) as refusal:
        scheduler.submit(make_request(2, [1] * 70))  # 50 have been admitted, so 20 of these are too many
    assert refusal.value.retry_after == pytest.approx(2.0, rel=0.1)


def test_a_row_that_diverges_does_so_alone() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(1, [30]))
    scheduler.submit(make_request(2, [30], ratio=1e38))
    scheduler.submit(make_request(3, [30]))
    requests = {request.number: request for request in tick_until_idle(scheduler)}
    assert requests[2].status == [Status.DIVERGED]
    assert requests[2].iterations == [6]  # the first whose residual, 1e190, has no square in float64
    for id in (1, 3):
        assert requests[id].status == [Status.CONVERGED]
        assert requests[id].iterations == [30]
        assert requests[id].logits[0, 0] == state_after(30)


@pytest.mark.parametrize("where", [INJECT, STEP, READOUT])
def test_a_row_that_raises_fails_its_own_request_and_no_other(where: float) -> None:
    scheduler = make_scheduler(slots=8)
    scheduler.submit(make_request(1, [3, 5]))
    scheduler.tick(0.0)
    scheduler.submit(make_request(2, [3, 3], raises=where))
    scheduler.submit(make_request(3, [3, 4]))
    requests = {request.number: request for request in tick_until_idle(scheduler)}
    assert requests[2].failure == f"ArithmeticError: raises at {where}"
    for id, iterations in ((1, [3, 5]), (3, [3, 4])):
        assert requests[id].failure is None
        assert requests[id].iterations == iterations
        assert requests[id].logits[:, 0].tolist() == [state_after(k) for k in iterations]
    scheduler.submit(make_request(4, [2]))
    assert [request.failure for request in tick_until_idle(scheduler)] == [None]


def test_a_failed_request_takes_its_waiting_rows_with_it() -> None:
    scheduler = make_scheduler(slots=2)
    scheduler.submit(make_request(1, [3] * 10, raises=STEP))
    assert [request.number for request in scheduler.tick(0.0)] == [1]
    assert scheduler.waiting_rows == 0
    scheduler.submit(make_request(2, [3]))
    assert [(request.number, request.failure) for request in tick_until_idle(scheduler)] == [(2, None)]


def test_a_request_that_fails_at_its_first_answer_gives_up_its_other_slots() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(1, [1, 500], raises=READOUT))
    scheduler.tick(0.0)
    assert [(request.number, request.failure is None) for request in scheduler.tick(0.0)] == [(1, False)]
    evaluations = scheduler.step_evaluations
    scheduler.submit(make_request(2, [1]))
    scheduler.tick(0.0)
    assert scheduler.step_evaluations == evaluations + 1


def test_a_batch_that_is_too_large_for_the_device_is_computed_request_by_request() -> None:
    class Small(TorchBackend):
        armed = False

        def step(self, state: Tensor, injection: Tensor) -> Tensor:
            if self.armed and len(state) > 2:
                raise torch.OutOfMemoryError("too many rows")
            return super().step(state, injection)

    backend = Small(Geometric(), dtype=torch.float64)
    scheduler = make_scheduler(slots=6, backend=backend)
    backend.armed = True
    for id in range(3):
        scheduler.submit(make_request(id, [2, 4]))
    requests = {request.number: (request.failure, request.iterations) for request in tick_until_idle(scheduler)}
    assert requests == {id: (None, [2, 4]) for id in range(3)}


def test_a_lost_device_is_not_taken_for_a_bad_request() -> None:
    class Lost(TorchBackend):
        armed = False

        def step(self, state: Tensor, injection: Tensor) -> Tensor:
            if self.armed:
                raise torch.AcceleratorError("device-side assert", 0)
            return super().step(state, injection)

    backend = Lost(Geometric(), dtype=torch.float64)
    scheduler = make_scheduler(backend=backend)
    backend.armed = True
    scheduler.submit(make_request(1, [2]))
    with pytest.raises(torch.AcceleratorError):
        scheduler.tick(0.0)


def test_a_tolerance_below_what_float32_can_hold_is_kept_until_the_cap() -> None:
    batch = RunningBatch(TorchBackend(Geometric()), {"picard": Picard()}, ResidualNorm.ABSOLUTE, (2,), slots=1)
    scheduler = Scheduler(batch, max_waiting_rows=1)
    scheduler.submit(running_request(1, np.array([[0.5, 0]], dtype=np.float32), [1e-300], [7], [None]))
    (request,) = tick_until_idle(scheduler)
    assert (request.iterations, request.status) == ([7], [Status.MAX_ITERATIONS])


ROW = np.zeros((1, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((0, 2), dtype=np.float32), [], [], []), "inputs: must have at least one row"),
        ((ROW, [1.0, 1.0], [1], [None]), r"inputs: must be 16 bytes, 2 float32 rows of shape \[2\] \(got 8\)"),
        ((ROW, [1.0], [], [None]), "max_iterations: must have 1 values"),
        ((ROW, [1.0], [1], [None, 3.0]), "deadline: must have 1 values"),
        ((ROW, [0.0], [1], [None]), "tolerance: must be positive and finite"),
        ((ROW, [float("nan")], [1], [None]), "tolerance: must be positive and finite"),
        ((ROW, [float("inf")], [1], [None]), "tolerance: must be positive and finite"),
        ((ROW, [1.0], [0], [None]), "max_iterations: must be at least 1"),
        ((ROW, [1.0], [2**63], [None]), "max_iterations: must be at least 1"),
        ((ROW, [1.0], [1], [float("nan")]), "deadline: must be seconds or null"),
    ],
)
def test_a_request_that_makes_no_sense_is_rejected_with_the_name_of_the_field(
    arguments: tuple[np.ndarray, list[float], list[int], list[float | None]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        running_request(1, *arguments)


def test_inputs_of_another_shape_are_rejected() -> None:
    three = Request("model", 1, np.zeros((1, 3), dtype="<f4").tobytes(), [1.0], [1], [None])
    with pytest.raises(ValueError, match=r"inputs: must be 8 bytes, 1 float32 rows of shape \[2\] \(got 12\)"):
        RunningRequest(1, three, make_scheduler().input_shape)


def test_the_timings_of_a_request_say_where_its_time_went() -> None:
    seconds = iter(range(100))
    scheduler = make_scheduler(slots=1, clock=lambda: float(next(seconds)))
    for request in (make_request(1, [3]), make_request(2, [1, 2])):
        scheduler.submit(request)
    first, second = tick_until_idle(scheduler)
    assert first.timings == Timings(submitted=0, admitted=2, injected=3, ended=4, read_out=5)
    # The second request has one row in at a time: the first one's admission counts, and the last one's end.
    assert second.timings == Timings(submitted=1, admitted=6, injected=7, ended=12, read_out=13)


def test_a_request_that_ends_in_the_queue_has_only_the_time_of_its_submission() -> None:
    scheduler = make_scheduler(slots=1)
    scheduler.submit(make_request(1, [3], deadline=1.0))
    (request,) = scheduler.tick(2.0)
    assert request.timings.submitted is not None
    assert request.timings == Timings(submitted=request.timings.submitted)


def test_batch_sizes_count_the_ticks_by_powers_of_two() -> None:
    scheduler = make_scheduler(slots=5)
    scheduler.submit(make_request(1, [1, 2, 3, 4, 6]))
    tick_until_idle(scheduler)
    # Batches of 5, 4, 3, 2, 1 and 1 rows.
    assert scheduler.batch_sizes == [2, 1, 2, 1]
    assert sum(scheduler.batch_sizes) == scheduler.ticks
