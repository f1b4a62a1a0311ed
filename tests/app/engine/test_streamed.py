"""Streamed requests: each iteration is reported, and what is reported is the answer if the row had ended there."""

from app.engine.running_request import RunningRequest
from app.engine_client.messages import Iteration
from jfb import Status
from tests.app.engine.geometric import READOUT, make_request, make_scheduler, state_after


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
