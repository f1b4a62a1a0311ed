"""Rows that end by their label, in the engine's core."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.lane import MAX_SECONDS_BETWEEN_LOOKS
from app.engine.masked import Masking
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine_client.messages import Stop
from jfb import ImplicitNetwork, LabelStop, ResidualNorm, Status, predict, solve
from jfb.architectures import ImplicitMLP, ImplicitResNet
from jfb.label_stop import Kind
from jfb.solvers import SOLVERS, PeacemanRachford, Picard
from tests.app.engine.geometric import READOUT, Geometric, every, make_request, make_scheduler, tick_until_idle
from tests.app.engine.requests import running_request
from tests.jfb.networks import small_mlp, small_monotone_mlp, small_resnet

ESTIMATE = LabelStop(Kind.ESTIMATE, 1.0, safety=1.5)


def even(network: ImplicitMLP | ImplicitResNet, inputs: np.ndarray) -> None:
    """Shift the logits so that no class is far ahead of the others on the inputs."""
    point = solve(network, network.inject(torch.from_numpy(inputs).double()), tolerance=1e-9, max_iterations=1000).fixed_point
    with torch.no_grad():
        network.classify.bias -= network.readout(point).mean(0)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("solver", ["picard", "anderson"])
@pytest.mark.parametrize(("make", "shape"), [(small_resnet, (1, 6, 6)), (small_mlp, (5,))], ids=["resnet", "mlp"])
@pytest.mark.parametrize("masking", [None, Masking((1, 2), (1, 4)), Masking(reads_out=True)])
def test_every_row_gets_what_predict_gives_it_with_any_company_and_any_stop(
    masking: Masking | None, make: type, shape: tuple[int, ...], solver: str, kind: Kind
) -> None:
    network = make()
    rng = np.random.default_rng(0)
    rows = 60
    inputs = rng.uniform(-2, 2, (rows, *shape)).astype(np.float32)
    even(network, inputs)
    label_stop = LabelStop.guarantee(network) if kind is Kind.GUARANTEE else ESTIMATE
    assert label_stop is not None
    label_solver = solver if label_stop.supports(SOLVERS[solver]) else "picard"
    tolerance = rng.choice([1e-1, 1e-4, 1e-9], rows)
    cap = rng.choice([1, 5, 200], rows, p=[0.1, 0.2, 0.7])
    by_label = rng.random(rows) < 0.6
    solvers = {name: SOLVERS[name]() for name in dict.fromkeys((solver, "picard"))}
    batch = RunningBatch(
        TorchBackend(network, dtype=torch.float64), solvers, ResidualNorm.RELATIVE, shape, slots=7, label_stop=label_stop
    )
    if masking is not None:
        batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 5.5), masking)
    scheduler = Scheduler(batch, max_waiting_rows=rows)
    finished: dict[int, RunningRequest] = {}
    for id in range(rows):
        stop: Stop = "label" if by_label[id] else "tolerance"
        limits = inputs[id : id + 1], [float(tolerance[id])], [int(cap[id])], [None]
        scheduler.submit(running_request(id, *limits, solver=label_solver if by_label[id] else solver, stop=stop))
        finished |= {request.number: request for _ in range(rng.integers(3)) for request in scheduler.tick(0.0)}
    finished |= {request.number: request for request in tick_until_idle(scheduler)}

    for own, name, offline in ((by_label, label_solver, label_stop), (~by_label, solver, None)):
        requests = [finished[id] for id in np.flatnonzero(own)]
        expected = predict(
            network,
            torch.from_numpy(inputs[own]).double(),
            tolerance=torch.from_numpy(tolerance[own]),
            max_iterations=torch.from_numpy(cap[own]),
            solver=SOLVERS[name](),
            label_stop=offline,
        )
        assert [request.iterations[0] for request in requests] == expected.solution.iterations.tolist()
        assert [request.status[0] for request in requests] == expected.solution.status
        assert np.concatenate([request.logits for request in requests]) == pytest.approx(expected.logits.numpy(), abs=1e-9)
        if expected.solution.stability is None:
            assert all(request.margin is None and request.bound is None for request in requests)
        else:
            assert expected.solution.status.count(Status.LABEL_STABLE) > 10
            margin, bound = (
                [values[0] for request in requests if (values := of(request))] for of in (lambda j: j.margin, lambda j: j.bound)
            )
            assert margin == pytest.approx(expected.solution.stability.margin.tolist(), rel=1e-6)
            assert bound == pytest.approx(expected.solution.stability.bound.tolist(), rel=1e-6)


class CountingReadouts(TorchBackend):
    """Counts the rows that are read out."""

    rows = 0

    def readout(self, state: Tensor) -> Tensor:
        self.rows += len(state)
        return super().readout(state)


def test_only_the_rows_of_streamed_requests_are_read_out_in_every_iteration() -> None:
    backend = CountingReadouts(Geometric(), dtype=torch.float64)
    # The logits are u and −u, and u is at most 2 away from its limit, so a safety of 1,000 settles no label for a while.
    scheduler = make_scheduler(slots=4, backend=backend, label_stop=LabelStop(Kind.ESTIMATE, 2.0, safety=1000.0))
    backend.rows = 0
    scheduler.submit(make_request(1, [8, 8, 8]))
    tick_until_idle(scheduler)
    assert backend.rows == 3
    scheduler.submit(make_request(2, [8, 8]))
    scheduler.submit(make_request(3, [6], stop="label"))
    tick_until_idle(scheduler)
    assert backend.rows == 3 + 2 + 6, "what was read out to be judged is the answer"


def test_a_settled_label_ends_a_row_and_is_reported_with_margin_and_bound() -> None:
    scheduler = make_scheduler(label_stop=LabelStop(Kind.ESTIMATE, 2.0, safety=8.0))
    scheduler.submit(make_request(1, [30, 1], stop="label"))
    (request,) = tick_until_idle(scheduler)
    # u_k = 2 − ½^(k−1): twice that is the lead, and 8 · 2 · ½^(k−1) what can be lost of it, so the fourth iteration settles it.
    assert request.status == [Status.LABEL_STABLE, Status.CONVERGED]
    assert request.iterations == [4, 1]
    assert request.margin == [2 * (2 - 0.5**3), 2.0]
    assert request.bound == [2.0, math.inf]


def test_a_row_that_waits_too_long_has_neither_margin_nor_bound() -> None:
    scheduler = make_scheduler(slots=1, label_stop=ESTIMATE)
    scheduler.submit(make_request(1, [50]))
    scheduler.tick(0.0)
    scheduler.submit(make_request(2, [50], deadline=1.0, stop="label"))
    (late,) = scheduler.tick(2.0)
    assert (late.number, late.status, late.iterations) == (2, [Status.DEADLINE], [0])
    assert late.margin is not None
    assert late.bound is not None
    assert np.isnan([*late.margin, *late.bound]).all()


def test_a_readout_that_raises_while_labels_are_judged_fails_its_own_request_alone() -> None:
    scheduler = make_scheduler(label_stop=LabelStop(Kind.ESTIMATE, 2.0))
    scheduler.submit(make_request(1, [9], stop="label"))
    scheduler.submit(make_request(2, [9], raises=READOUT, stop="label"))
    requests = {request.number: request for request in tick_until_idle(scheduler)}
    assert requests[2].failure is not None
    assert requests[1].failure is None
    assert requests[1].status == [Status.LABEL_STABLE]


def test_what_cannot_be_judged_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"stop: must be 'tolerance' with solver picard \(got 'label'\)"):
        make_scheduler().submit(make_request(1, [1], stop="label"))
    solvers = {"peaceman_rachford": PeacemanRachford(), "picard": Picard()}
    backend = TorchBackend(small_monotone_mlp(), dtype=torch.float64)
    batch = RunningBatch(backend, solvers, ResidualNorm.RELATIVE, (5,), slots=2, label_stop=ESTIMATE)
    scheduler = Scheduler(batch, max_waiting_rows=9)
    inputs = np.ones((1, 5), dtype=np.float32)
    with pytest.raises(ValueError, match=r"stop: must be 'tolerance' with solver peaceman_rachford \(got 'label'\)"):
        scheduler.submit(running_request(1, inputs, [1e-3], [9], [None], stop="label"))
    scheduler.submit(running_request(2, inputs, [1e-3], [9], [None], solver="picard", stop="label"))
    assert [request.number for request in tick_until_idle(scheduler)] == [2]


def test_a_row_that_ends_by_its_label_does_not_begin_in_low_precision() -> None:
    network: ImplicitNetwork = small_mlp()
    backend = TorchBackend(network, dtype=torch.float64)
    stop = LabelStop.guarantee(network)
    inputs = np.random.default_rng(1).uniform(-2, 2, (8, 5)).astype(np.float32)
    arguments = backend, {"picard": Picard()}, ResidualNorm.RELATIVE, (5,)
    scheduler = Scheduler(RunningBatch(*arguments, slots=8, label_stop=stop, low_precision=backend), max_waiting_rows=9)
    scheduler.submit(running_request(1, inputs, [1e-9] * 8, [500] * 8, [None] * 8, stop="label"))
    (request,) = tick_until_idle(scheduler)
    expected = predict(network, torch.from_numpy(inputs).double(), tolerance=1e-9, max_iterations=500, label_stop=stop)
    assert request.iterations == expected.solution.iterations.tolist()
    assert Status.LABEL_STABLE in request.status
