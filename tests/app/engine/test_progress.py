"""Watched jobs: each iteration is told, and what is told is the answer if the row had ended there."""

from app.engine.request import Job, Progress

from jfb import Status
from tests.app.engine.geometric import READOUT, make_engine, make_job, state_after


def watch(engine_jobs: list[Job], slots: int = 4) -> tuple[list[Job], list[Progress]]:
    engine = make_engine(slots=slots)
    for job in engine_jobs:
        engine.submit(job)
    finished: list[Job] = []
    progress: list[Progress] = []
    while engine.busy:
        ended = engine.tick(0.0)
        for one in engine.take_progress():
            assert one.id not in [job.id for job in finished], "what is told comes before the answer"
            progress.append(one)
        finished += ended
    return finished, progress


def test_every_iteration_of_every_row_of_a_watched_job_is_told_and_no_other() -> None:
    finished, progress = watch([make_job(1, [2, 3, 1], watched=True), make_job(2, [4]), make_job(3, [2], watched=True)])
    told = [
        (one.id, row, k, residual, logits[0])
        for one in progress
        for row, k, residual, logits in zip(one.rows, one.iterations, one.residual, one.logits.tolist(), strict=True)
    ]
    expected = [
        (id, row, k, 0.5 ** (k - 1), state_after(k))
        for id, rows in ((1, [2, 3, 1]), (3, [2]))
        for row, needed in enumerate(rows)
        for k in range(1, needed + 1)
    ]
    assert sorted(told) == expected
    assert {job.id: job.iterations for job in finished} == {1: [2, 3, 1], 2: [4], 3: [2]}


def test_the_last_that_is_told_of_a_row_is_its_answer() -> None:
    (job,), progress = watch([make_job(1, [5], watched=True)])
    assert progress[-1].iterations == job.iterations
    assert progress[-1].residual == job.residual
    assert progress[-1].logits.tolist() == job.logits.tolist()


def test_rows_that_wait_are_told_of_when_they_have_a_slot() -> None:
    _, progress = watch([make_job(1, [2, 2], watched=True)], slots=1)
    assert [(one.rows, one.iterations) for one in progress] == [([0], [1]), ([0], [2]), ([1], [1]), ([1], [2])]


def test_a_watched_job_that_cannot_be_read_out_fails_alone() -> None:
    finished, _ = watch([make_job(1, [3], watched=True, raises=READOUT), make_job(2, [4], watched=True)])
    failed, good = sorted(finished, key=lambda job: job.id)
    assert failed.failure is not None
    assert failed.failure.startswith("ArithmeticError")
    assert good.status == [Status.CONVERGED]


def test_a_cancelled_job_is_not_told_of_any_more() -> None:
    engine = make_engine()
    engine.submit(make_job(1, [50], watched=True))
    engine.tick(0.0)
    engine.tick(0.0)
    assert [one.iterations for one in engine.take_progress()] == [[1]]
    engine.cancel(1)
    for _ in range(3):
        engine.tick(0.0)
    assert engine.take_progress() == []
