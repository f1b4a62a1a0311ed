"""Whose turn it is: by deadline, then fairly between large and small requests."""

from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.engine.queue import Queue
from app.engine.running_request import RunningRequest
from tests.app.engine.requests import running_request


def a_request(id: int, rows: int, deadline: float | None = None) -> RunningRequest:
    return running_request(id, np.zeros((rows, 1), dtype=np.float32), [1.0] * rows, [1] * rows, [deadline] * rows)


def queue(*requests: RunningRequest) -> Queue:
    waiting = Queue(10**6)
    for request in requests:
        waiting.add(request)
    return waiting


def taken(waiting: Queue, times: int = 10**6) -> Iterable[tuple[int, int]]:
    """One row at a time, as request and row."""
    while len(waiting) and times:
        ((request, rows),) = waiting.take(1)
        times -= 1
        yield request.number, rows.item()


def test_single_rows_leave_in_order_of_arrival() -> None:
    assert [id for id, _ in taken(queue(*(a_request(id, 1) for id in range(20))))] == list(range(20))


def test_an_earlier_deadline_goes_first_and_none_comes_last() -> None:
    waiting = queue(a_request(1, 2), a_request(2, 1, deadline=9.0), a_request(3, 1, deadline=3.0), a_request(4, 1))
    assert [id for id, _ in taken(waiting)][:2] == [3, 2]


def test_a_small_request_does_not_wait_for_the_large_one_before_it() -> None:
    waiting = queue(a_request(1, 1000), a_request(2, 1))
    assert 2 in [id for id, _ in taken(waiting, 4)]


def test_a_large_request_gets_half_of_the_slots_however_many_small_ones_follow() -> None:
    waiting = queue(a_request(0, 100))
    large = 0
    for id in range(1, 151):
        waiting.add(a_request(id, 1))  # as many arrive as are taken
        large += sum(request == 0 for request, _ in taken(waiting, 1))
    assert 70 <= large <= 100


def test_rows_past_their_deadline_leave_the_queue_and_take_no_turn() -> None:
    waiting = queue(a_request(1, 2, deadline=5.0), a_request(2, 1, deadline=6.0), a_request(3, 1))
    assert waiting.first_deadline == 5.0
    assert [(request.number, rows.tolist()) for request, rows in waiting.take_late(5.5)] == [(1, [0, 1])]
    assert [id for id, _ in taken(waiting)] == [2, 3]


@given(st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(0, 3), st.booleans(), st.integers(0, 5)), max_size=30))
def test_every_row_leaves_exactly_once_in_whatever_order_things_happen(steps: list[tuple[int, int | None, bool, int]]) -> None:
    waiting, outstanding, cancelled = Queue(10**6), set(), set()
    for id, (rows, deadline, cancels, takes) in enumerate(steps):
        waiting.add(a_request(id, rows, None if deadline is None else float(id + deadline)))
        outstanding |= {(id, row) for row in range(rows)}
        if cancels:
            waiting.remove(id // 2)
            cancelled.add(id // 2)
            outstanding -= {(request, row) for request, row in outstanding if request == id // 2}
        for request, numbers in (*waiting.take(takes), *waiting.take_late(float(id))):
            assert request.number not in cancelled
            for row in numbers.tolist():
                outstanding.remove((request.number, row))
        assert len(waiting) == len(outstanding)
    assert set(taken(waiting)) == outstanding


def test_what_has_left_does_not_pile_up_behind_what_still_waits() -> None:
    """A row that one order has served stays in the other's heap; a request that never gets its turn must not keep it there."""
    waiting = queue(a_request(0, 1))
    for id in range(1, 5000):
        waiting.add(a_request(id, 1, deadline=1.0))
        waiting.remove(id)
    assert len(waiting) == 1
    assert len(waiting._by_arrival) + len(waiting._by_number) < 500
