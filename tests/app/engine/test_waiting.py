"""Whose turn it is: by deadline, then fairly between large and small jobs."""

from collections.abc import Iterable

import numpy as np
from app.engine.request import Job
from hypothesis import given
from hypothesis import strategies as st

from app.engine.queue import WaitingRows


def a_job(id: int, rows: int, deadline: float | None = None) -> Job:
    return Job(id, np.zeros((rows, 1), dtype=np.float32), [1.0] * rows, [1] * rows, [deadline] * rows)


def queue(*jobs: Job) -> WaitingRows:
    waiting = WaitingRows()
    for job in jobs:
        waiting.add(job)
    return waiting


def taken(waiting: WaitingRows, times: int = 10**6) -> Iterable[tuple[int, int]]:
    """One row at a time, as job and row."""
    while len(waiting) and times:
        ((job, rows),) = waiting.take(1)
        times -= 1
        yield job.id, rows.item()


def test_single_rows_leave_in_order_of_arrival() -> None:
    assert [id for id, _ in taken(queue(*(a_job(id, 1) for id in range(20))))] == list(range(20))


def test_an_earlier_deadline_goes_first_and_none_comes_last() -> None:
    waiting = queue(a_job(1, 2), a_job(2, 1, deadline=9.0), a_job(3, 1, deadline=3.0), a_job(4, 1))
    assert [id for id, _ in taken(waiting)][:2] == [3, 2]


def test_a_small_job_does_not_wait_for_the_large_one_before_it() -> None:
    waiting = queue(a_job(1, 1000), a_job(2, 1))
    assert 2 in [id for id, _ in taken(waiting, 4)]


def test_a_large_job_gets_half_of_the_slots_however_many_small_ones_follow() -> None:
    waiting = queue(a_job(0, 100))
    large = 0
    for id in range(1, 151):
        waiting.add(a_job(id, 1))  # as many arrive as are taken
        large += sum(job == 0 for job, _ in taken(waiting, 1))
    assert 70 <= large <= 100


def test_rows_past_their_deadline_are_taken_out_and_are_no_ones_turn() -> None:
    waiting = queue(a_job(1, 2, deadline=5.0), a_job(2, 1, deadline=6.0), a_job(3, 1))
    assert waiting.first_deadline == 5.0
    assert [(job.id, rows.tolist()) for job, rows in waiting.take_late(5.5)] == [(1, [0, 1])]
    assert [id for id, _ in taken(waiting)] == [2, 3]


@given(st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(0, 3), st.booleans(), st.integers(0, 5)), max_size=30))
def test_every_row_leaves_exactly_once_in_whatever_order_things_happen(steps: list[tuple[int, int | None, bool, int]]) -> None:
    waiting, outstanding, cancelled = WaitingRows(), set(), set()
    for id, (rows, deadline, cancels, takes) in enumerate(steps):
        waiting.add(a_job(id, rows, None if deadline is None else float(id + deadline)))
        outstanding |= {(id, row) for row in range(rows)}
        if cancels:
            waiting.remove(id // 2)
            cancelled.add(id // 2)
            outstanding -= {(job, row) for job, row in outstanding if job == id // 2}
        for job, numbers in (*waiting.take(takes), *waiting.take_late(float(id))):
            assert job.id not in cancelled
            for row in numbers.tolist():
                outstanding.remove((job.id, row))
        assert len(waiting) == len(outstanding)
    assert set(taken(waiting)) == outstanding


def test_what_has_left_does_not_pile_up_behind_what_still_waits() -> None:
    """A row that one order has served stays in the other's heap; a job that never gets its turn must not keep thousands there."""
    waiting = queue(a_job(0, 1))
    for id in range(1, 5000):
        waiting.add(a_job(id, 1, deadline=1.0))
        waiting.remove(id)
    assert len(waiting) == 1
    assert len(waiting._by_arrival) + len(waiting._by_number) < 500
