"""Rows of several solvers and precisions in one batch: each computes what it computes alone."""

from copy import deepcopy
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import Tensor

from app.engine.backends import BFloat16Backend, TF32Backend, TorchBackend
from app.engine.batch import RunningBatch
from app.engine.lane import MAX_SECONDS_BETWEEN_LOOKS
from app.engine.masked import Masking
from app.engine.scheduler import Scheduler
from jfb import ImplicitNetwork, ResidualNorm, Status, predict
from jfb.solvers import SOLVERS, Anderson, Picard
from tests.app.engine.geometric import every, tick_until_idle
from tests.app.engine.requests import running_request
from tests.jfb.networks import small_resnet

SHAPE = (1, 6, 6)


class ByRow(ImplicitNetwork):
    """Steps each row by itself: in bfloat16, rounding may depend on the size of a batch, which is not what is tested here."""

    def __init__(self, network: ImplicitNetwork) -> None:
        super().__init__()
        self.network = network

    def inject(self, inputs: Tensor) -> Tensor:
        return self.network.inject(inputs)

    def initial_state(self, injection: Tensor) -> Tensor:
        return self.network.initial_state(injection)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        rows = zip(state.split(1), injection.split(1), strict=True)
        return torch.cat([self.network.step(*row) for row in rows]) if len(state) else state

    def readout(self, state: Tensor) -> Tensor:
        return self.network.readout(state)


NETWORK = ByRow(small_resnet(contraction=0.95).float()).requires_grad_(False)
LOW = deepcopy(NETWORK).bfloat16()


def make_batch(slots: int, *, mixed: bool = False) -> RunningBatch:
    low = BFloat16Backend(deepcopy(NETWORK), torch.device("cpu")) if mixed else None
    solvers = {"picard": Picard(), "anderson": Anderson()}
    return RunningBatch(TorchBackend(NETWORK), solvers, ResidualNorm.RELATIVE, SHAPE, slots=slots, low_precision=low)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed"])
@pytest.mark.parametrize(("slots", "masking"), [(7, None), (3, None), (7, Masking((1, 2, 4), (1, 4))), (3, Masking())])
def test_every_row_gets_what_predict_gives_it_with_its_solver_in_any_company(
    slots: int, masking: Masking | None, mixed: bool
) -> None:
    inputs = np.random.default_rng(0).uniform(0, 1, (60, *SHAPE)).astype(np.float32)
    batch = make_batch(slots, mixed=mixed)
    if masking is not None:
        batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 5.5), masking)
    scheduler = Scheduler(batch, max_waiting_rows=60)
    submitted = list(
        zip(
            range(60),
            cycle([1e-1, 1e-4, 1e-3]),
            cycle(["picard", "anderson", None, "anderson"]),
            cycle([500, 500, 500, 500, 1, 2]),
            strict=False,
        )
    )
    for id, tolerance, solver, cap in submitted:
        scheduler.submit(running_request(id, inputs[id : id + 1], [tolerance], [cap], [None], solver=solver))
    requests = {request.number: request for request in tick_until_idle(scheduler)}
    for id, tolerance, solver, cap in submitted:
        expected = predict(
            NETWORK,
            torch.from_numpy(inputs[id : id + 1]),
            tolerance=tolerance,
            max_iterations=cap,
            solver=SOLVERS[solver or "picard"](),
            low_precision=LOW if mixed else None,
        )
        assert requests[id].iterations == expected.solution.iterations.tolist()
        assert requests[id].status == expected.solution.status
        assert requests[id].residual == pytest.approx(expected.solution.residual.tolist(), rel=1e-3)
        assert requests[id].logits == pytest.approx(expected.logits.numpy(), abs=1e-5)
    assert scheduler.iterations == sum(request.iterations[0] for request in requests.values())
    assert scheduler.step_evaluations == scheduler.iterations + scheduler.wasted_iterations
    assert (scheduler.wasted_iterations == 0) == (masking is None)
    assert scheduler.active_rows == scheduler.waiting_rows == 0


class TenBits(TorchBackend):
    """Rounds what ``step`` multiplies to ten bits, as a GPU does in TF32."""

    roundoff = TF32Backend.roundoff
    rows = 0

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        self.rows += len(state)
        return super().step((state.view(torch.int32) & -(1 << 13)).view(torch.float32), injection)


@pytest.mark.parametrize("masking", [None, Masking((1, 2, 4), (1,))])
def test_rows_stay_in_low_precision_until_its_own_rounding_and_end_in_full_precision(masking: Masking | None) -> None:
    inputs = np.random.default_rng(0).uniform(0, 1, (7, *SHAPE)).astype(np.float32)
    low_iterations = {}
    for roundoff in (TF32Backend.roundoff, BFloat16Backend.roundoff):
        low = TenBits(deepcopy(NETWORK))
        low.roundoff = roundoff
        batch = RunningBatch(
            TorchBackend(NETWORK), {"picard": Picard()}, ResidualNorm.RELATIVE, SHAPE, slots=7, low_precision=low
        )
        if masking is not None:
            batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS), masking)
        scheduler = Scheduler(batch, max_waiting_rows=9)
        low.rows = 0
        scheduler.submit(running_request(1, inputs, [1e-5] * 7, [500] * 7, [None] * 7))
        (request,) = tick_until_idle(scheduler)
        expected = predict(NETWORK, torch.from_numpy(inputs), tolerance=1e-5, max_iterations=500)
        assert request.status == [Status.CONVERGED] * 7
        assert max(request.residual) <= 1e-5
        assert np.abs(np.array(request.iterations) - expected.solution.iterations.numpy()).max() <= 2
        assert request.logits == pytest.approx(expected.logits.numpy(), abs=1e-3)
        low_iterations[roundoff] = low.rows
    assert 0 < low_iterations[BFloat16Backend.roundoff] < low_iterations[TF32Backend.roundoff] < sum(request.iterations)


def test_a_batch_never_holds_more_than_its_slots() -> None:
    scheduler = Scheduler(make_batch(5), max_waiting_rows=20)
    inputs = np.zeros((20, *SHAPE), dtype=np.float32)
    scheduler.submit(running_request(1, inputs, [1e-30] * 20, [9] * 20, [None] * 20))
    scheduler.tick(0.0)
    assert (scheduler.slots, scheduler.active_rows, scheduler.waiting_rows) == (5, 5, 15)
    (request,) = tick_until_idle(scheduler)
    assert request.iterations == [9] * 20


def test_what_is_reported_of_a_row_in_low_precision_is_always_of_float32() -> None:
    """Cancelled, at its deadline or at its cap: no row ends with a residual that was measured in bfloat16."""
    scheduler = Scheduler(make_batch(8, mixed=True), max_waiting_rows=8)
    inputs = np.random.default_rng(1).uniform(0, 1, (3, *SHAPE)).astype(np.float32)
    scheduler.submit(running_request(1, inputs[:1], [1e-30], [500], [2.0]))
    scheduler.submit(running_request(2, inputs[1:2], [1e-30], [500], [None]))
    scheduler.submit(running_request(3, inputs[2:], [1e-30], [3], [None]))
    assert scheduler.tick(0.0) == scheduler.tick(1.0) == []
    scheduler.cancel(2)
    assert scheduler.tick(2.0) == [], "at its deadline the first row goes on in float32, for one iteration"
    late, capped = sorted(scheduler.tick(3.0), key=lambda request: request.number)
    assert (late.number, late.status, late.iterations) == (1, [Status.DEADLINE], [3])
    assert (capped.number, capped.status, capped.iterations) == (3, [Status.MAX_ITERATIONS], [3])
    for request, row in ((late, inputs[:1]), (capped, inputs[2:])):
        found = predict(NETWORK, torch.from_numpy(row), tolerance=1e-30, max_iterations=3, low_precision=LOW)
        assert request.residual == pytest.approx(found.solution.residual.tolist(), rel=1e-5)
        assert request.logits == pytest.approx(found.logits.numpy(), abs=1e-5)
    assert not scheduler.busy


def test_a_solver_that_is_not_offered_is_rejected_by_name() -> None:
    scheduler = Scheduler(make_batch(1), max_waiting_rows=1)
    with pytest.raises(ValueError, match=r"solver: must be one of picard, anderson \(got 'newton'\)"):
        scheduler.submit(running_request(1, np.zeros((1, *SHAPE), dtype=np.float32), [1.0], [1], [None], solver="newton"))


def test_small_requests_pass_a_large_one_by_and_it_still_gets_on() -> None:
    scheduler = Scheduler(make_batch(2), max_waiting_rows=200)
    large = np.zeros((100, *SHAPE), dtype=np.float32)
    scheduler.submit(running_request(0, large, [1e-30] * 100, [2] * 100, [None] * 100))
    for id in range(1, 11):
        scheduler.submit(running_request(id, large[:1], [1e-30], [2], [None]))
    order = [request.number for request in tick_until_idle(scheduler)]
    assert order == [*range(1, 11), 0]
    assert scheduler.ticks == 110, "two slots, two iterations a row: no tick was spent without a full batch"
