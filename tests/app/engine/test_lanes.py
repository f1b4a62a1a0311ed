"""Rows of several solvers and precisions, on several devices, in one engine: each computes what it computes alone."""

from copy import deepcopy
from itertools import cycle

import numpy as np
import pytest
import torch
from app.engine.request import Job
from torch import Tensor

from app.engine.backends import BFloat16Backend, TorchBackend
from app.engine.batch import RunningBatch
from app.engine.scheduler import Engine
from jfb import ImplicitNetwork, ResidualNorm, Status, predict
from jfb.solvers import SOLVERS, Anderson, Picard
from tests.app.engine.geometric import tick_until_idle
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
    rough = BFloat16Backend(deepcopy(NETWORK), torch.device("cpu")) if mixed else None
    solvers = {"picard": Picard(), "anderson": Anderson()}
    return RunningBatch(TorchBackend(NETWORK), solvers, ResidualNorm.RELATIVE, SHAPE, slots=slots, rough=rough)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed"])
@pytest.mark.parametrize("slots", [(7,), (3, 5)], ids=["one device", "two devices"])
def test_every_row_gets_what_predict_gives_it_with_its_solver_whoever_shares_the_batches(
    slots: tuple[int, ...], mixed: bool
) -> None:
    inputs = np.random.default_rng(0).uniform(0, 1, (60, *SHAPE)).astype(np.float32)
    engine = Engine([make_batch(number, mixed=mixed) for number in slots], max_waiting_rows=60)
    asked = list(
        zip(
            range(60),
            cycle([1e-1, 1e-4, 1e-3]),
            cycle(["picard", "anderson", None, "anderson"]),
            cycle([500, 500, 500, 500, 1, 2]),
            strict=False,
        )
    )
    for id, tolerance, solver, cap in asked:
        engine.submit(Job(id, inputs[id : id + 1], [tolerance], [cap], [None], solver=solver))
    jobs = {job.id: job for job in tick_until_idle(engine)}
    for id, tolerance, solver, cap in asked:
        expected = predict(
            NETWORK,
            torch.from_numpy(inputs[id : id + 1]),
            tolerance=tolerance,
            max_iterations=cap,
            solver=SOLVERS[solver or "picard"](),
            rough=LOW if mixed else None,
        )
        assert jobs[id].iterations == expected.solution.iterations.tolist()
        assert jobs[id].status == expected.solution.status
        assert jobs[id].residual == pytest.approx(expected.solution.residual.tolist(), rel=1e-3)
        assert jobs[id].logits == pytest.approx(expected.logits.numpy(), abs=1e-5)
    assert engine.step_evaluations == engine.iterations == sum(job.iterations[0] for job in jobs.values())
    assert engine.active_rows == engine.waiting_rows == 0


def test_all_devices_work_and_none_holds_more_than_its_slots() -> None:
    batches = [make_batch(2), make_batch(3)]
    engine = Engine(batches, max_waiting_rows=20)
    inputs = np.zeros((20, *SHAPE), dtype=np.float32)
    engine.submit(Job(1, inputs, [1e-30] * 20, [9] * 20, [None] * 20))
    engine.tick(0.0)
    assert [batch.active for batch in batches] == [2, 3]
    assert (engine.slots, engine.active_rows, engine.waiting_rows) == (5, 5, 15)
    (job,) = tick_until_idle(engine)
    assert job.iterations == [9] * 20


def test_what_is_said_of_a_row_in_low_precision_is_always_of_float32() -> None:
    """Cancelled, at its deadline or at its cap: no row ends with a residual that was measured in bfloat16."""
    engine = Engine([make_batch(8, mixed=True)], max_waiting_rows=8)
    inputs = np.random.default_rng(1).uniform(0, 1, (3, *SHAPE)).astype(np.float32)
    engine.submit(Job(1, inputs[:1], [1e-30], [500], [2.0]))
    engine.submit(Job(2, inputs[1:2], [1e-30], [500], [None]))
    engine.submit(Job(3, inputs[2:], [1e-30], [3], [None]))
    assert engine.tick(0.0) == engine.tick(1.0) == []
    engine.cancel(2)
    assert engine.tick(2.0) == [], "at its deadline the first row goes on in float32, for one iteration"
    late, capped = sorted(engine.tick(3.0), key=lambda job: job.id)
    assert (late.id, late.status, late.iterations) == (1, [Status.DEADLINE], [3])
    assert (capped.id, capped.status, capped.iterations) == (3, [Status.MAX_ITERATIONS], [3])
    for job, image in ((late, inputs[:1]), (capped, inputs[2:])):
        found = predict(NETWORK, torch.from_numpy(image), tolerance=1e-30, max_iterations=3, rough=LOW)
        assert job.residual == pytest.approx(found.solution.residual.tolist(), rel=1e-5)
        assert job.logits == pytest.approx(found.logits.numpy(), abs=1e-5)
    assert not engine.busy


def test_a_solver_that_is_not_offered_is_refused_by_name() -> None:
    engine = Engine([make_batch(1)], max_waiting_rows=1)
    with pytest.raises(ValueError, match="solver: expected one of picard, anderson, got 'newton'"):
        engine.submit(Job(1, np.zeros((1, *SHAPE), dtype=np.float32), [1.0], [1], [None], solver="newton"))


def test_small_jobs_pass_a_large_one_by_and_it_still_gets_on() -> None:
    engine = Engine([make_batch(2)], max_waiting_rows=200)
    large = np.zeros((100, *SHAPE), dtype=np.float32)
    engine.submit(Job(0, large, [1e-30] * 100, [2] * 100, [None] * 100))
    for id in range(1, 11):
        engine.submit(Job(id, large[:1], [1e-30], [2], [None]))
    order = [job.id for job in tick_until_idle(engine)]
    assert order == [*range(1, 11), 0]
    assert engine.ticks == 110, "two slots, two iterations a row: no tick was spent without a full batch"
