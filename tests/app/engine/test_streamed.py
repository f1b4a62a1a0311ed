"""Streamed requests: each iteration is reported, and what is reported is the answer if the row had ended there."""

import numpy as np
import torch

from app.engine.backends import BFloat16Backend, TorchBackend
from app.engine.batch import RunningBatch
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine_client.messages import Iteration
from jfb import ResidualNorm, Status
from jfb.solvers import Picard
from tests.app.engine.geometric import READOUT, make_request, make_scheduler, state_after
from tests.app.engine.requests import running_request
from tests.jfb.networks import small_resnet


def stream(requests: list[RunningRequest], slots: int = 4) -> tuple[list[RunningRequest], list[Iteration]]:
    scheduler = make_scheduler(slots=slots)
    for request in requests:
        scheduler.submit(request)
    finished: list[RunningRequest] = []
    iterations: list[Iteration] = []
    while scheduler.busy:
        ended = scheduler.tick(0.0)
        for _, iteration in scheduler.take_iterations():
            assert iteration.id not in [request.number for request in finished], "iterations come before the result"
            iterations.append(iteration)
        finished += ended
    return finished, iterations


def test_every_iteration_of_every_row_of_a_streamed_request_is_reported_and_no_other() -> None:
    finished, iterations = stream(
        [make_request(1, [2, 3, 1], streamed=True), make_request(2, [4]), make_request(3, [2], streamed=True)]
    )
    reported = [
        (one.id, row, k, residual, logits[0])
        for one in iterations
        for row, k, residual, logits in zip(one.rows, one.iterations, one.residual, one.logits_array().tolist(), strict=True)
    ]
    expected = [
        (id, row, k, 0.5 ** (k - 1), state_after(k))
        for id, rows in ((1, [2, 3, 1]), (3, [2]))
        for row, needed in enumerate(rows)
        for k in range(1, needed + 1)
    ]
    assert sorted(reported) == expected
    assert {request.number: request.iterations for request in finished} == {1: [2, 3, 1], 2: [4], 3: [2]}


def test_the_last_that_is_reported_of_a_row_is_its_answer() -> None:
    (request,), iterations = stream([make_request(1, [5], streamed=True)])
    assert iterations[-1].iterations == request.iterations
    assert iterations[-1].residual == request.residual
    assert iterations[-1].logits_array().tolist() == request.logits.tolist()


def test_rows_that_wait_are_reported_when_they_have_a_slot() -> None:
    _, iterations = stream([make_request(1, [2, 2], streamed=True)], slots=1)
    assert [(one.rows, one.iterations) for one in iterations] == [([0], [1]), ([0], [2]), ([1], [1]), ([1], [2])]


def test_a_streamed_request_that_cannot_be_read_out_fails_alone() -> None:
    finished, _ = stream([make_request(1, [3], streamed=True, raises=READOUT), make_request(2, [4], streamed=True)])
    failed, good = sorted(finished, key=lambda request: request.number)
    assert failed.failure is not None
    assert failed.failure.startswith("ArithmeticError")
    assert good.status == [Status.CONVERGED]


def test_a_cancelled_request_is_not_reported_any_more() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(1, [50], streamed=True))
    scheduler.tick(0.0)
    scheduler.tick(0.0)
    assert [one.iterations for _, one in scheduler.take_iterations()] == [[1]]
    scheduler.cancel(1)
    for _ in range(3):
        scheduler.tick(0.0)
    assert scheduler.take_iterations() == []


def test_rows_in_low_precision_are_read_out_in_full_precision() -> None:
    network = small_resnet().float()
    backend, low = TorchBackend(network), BFloat16Backend(network.folded(), torch.device("cpu"))
    batch = RunningBatch(backend, {"picard": Picard()}, ResidualNorm.RELATIVE, (1, 6, 6), slots=2, low_precision=low)
    scheduler = Scheduler(batch, max_waiting_rows=2)
    inputs = np.random.default_rng(0).random((1, 1, 6, 6), np.float32)
    scheduler.submit(running_request(1, inputs, [1e-3], [50], [None], streamed=True))
    lows, iterations, finished = [], [], []
    while scheduler.busy:
        finished += scheduler.tick(0.0)
        lows.append(any(lane.full_precision is not None for lane in batch.active_lanes))
        iterations += [iteration for _, iteration in scheduler.take_iterations()]
    assert lows[0], "it starts in low precision"
    assert not finished[0].failure
    assert [one.iterations for one in iterations] == [[k] for k in range(1, finished[0].iterations[0] + 1)]
    assert all(np.isfinite(one.logits_array()).all() for one in iterations)
