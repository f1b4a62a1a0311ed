"""Whose turn it is: fairly between clients, then by deadline and by arrival, fairly between large and small requests."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.queue import Queue
from app.engine.running_request import RunningRequest
from app.engine_client.errors import QueueFull
from tests.app.engine.requests import running_request


def a_request(id: int, rows: int, deadline: float | None = None, client: str = "") -> RunningRequest:
    inputs = np.zeros((rows, 1), dtype=np.float32)
    return running_request(id, inputs, [1.0] * rows, [1] * rows, [deadline] * rows, client=client)


def queue(*requests: RunningRequest) -> Queue:
    waiting = Queue(10**6)
    for request in requests:
        waiting.add(request)
    return waiting


def taken(waiting: Queue, times: int = 10**6) -> Iterable[tuple[int, int]]:
    """One row at a time, as request and row."""
    while len(waiting) and times:
        ((request, (row,)),) = waiting.take(1)
        times -= 1
        yield request.number, row


def test_single_rows_leave_in_order_of_arrival() -> None:
    assert [id for id, _ in taken(queue(*(a_request(id, 1) for id in range(20))))] == list(range(20))


def test_every_second_row_is_the_one_with_the_earliest_deadline_and_the_others_leave_by_arrival() -> None:
    waiting = queue(a_request(1, 2), a_request(2, 1, deadline=9.0), a_request(3, 1, deadline=3.0), a_request(4, 1))
    assert list(taken(waiting)) == [(3, 0), (1, 0), (2, 0), (1, 1), (4, 0)]


@pytest.mark.parametrize("deadline", [None, 1.0, 1e9])
def test_a_row_without_a_deadline_waits_at_most_twice_as_long_as_by_arrival_whatever_the_others_write(
    deadline: float | None,
) -> None:
    waiting = queue(*(a_request(id, 10, deadline) for id in range(10)), a_request(10, 1))
    left: list[int] = []
    for id in range(100, 1000):
        waiting.add(a_request(id, 1, deadline))  # a flood that does not end
        left += (request for request, _ in taken(waiting, 1))
    assert left.index(10) <= 200


def test_clients_take_turns_row_by_row_whatever_they_send() -> None:
    flood = [a_request(id, 50, deadline=1.0, client="flood") for id in range(10)]
    waiting = queue(*flood, a_request(10, 3, client="good"), a_request(11, 3, client="other"))
    left = [request for request, _ in taken(waiting, 9)]
    assert Counter(min(request, 10) if request < 11 else 11 for request in left)[10] == 3
    assert left.count(11) == 3


def test_a_client_that_leaves_and_comes_back_gets_no_extra_turn() -> None:
    waiting = queue(*(a_request(id, 1, client=f"{id}") for id in range(3)))
    left = []
    for id in range(3, 12):
        ((request, _),) = waiting.take(1)
        left.append(request.client)
        waiting.add(a_request(id, 1, client=request.client))
    assert left == ["0", "1", "2"] * 3


def test_a_client_that_fills_the_queue_leaves_room_for_others() -> None:
    waiting = Queue(900)
    for id in range(2000):
        with suppress(QueueFull):
            waiting.add(a_request(id, 1, client=f"flood {id % 2}"))
    assert 900 <= len(waiting) <= 960
    waiting.add(a_request(2000, 20, client="good"))
    with pytest.raises(QueueFull):
        waiting.add(a_request(2001, 1, client="flood 0"))


def test_clients_that_have_rows_waiting_leave_a_place_for_one_that_has_none() -> None:
    waiting = Queue(48)
    for id in range(1000):
        with suppress(QueueFull):
            waiting.add(a_request(id, 1 + id % 7, client=f"{id % 5}"))
    waiting.add(a_request(1000, 1, client="new"))


def test_a_request_that_fits_into_an_empty_queue_is_never_refused_there() -> None:
    for rows in (1, 4, 900):
        queue_of_that_size = Queue(rows)
        queue_of_that_size.add(a_request(0, rows))
        with pytest.raises(QueueFull):
            queue_of_that_size.add(a_request(1, 1))
    small = Queue(4)
    for id in range(4):
        small.add(a_request(id, 1))
    assert len(small) == 4


def test_clients_that_have_left_are_forgotten() -> None:
    waiting = queue(a_request(0, 1))
    for id in range(1, 5000):
        waiting.add(a_request(id, 1, client=f"{id}"))
        waiting.remove(id)
    assert len(waiting._shares) == len(waiting._turns) < 500


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
    assert [(request.number, rows) for request, rows in waiting.take_late(5.5)] == [(1, [0, 1])]
    assert [id for id, _ in taken(waiting)] == [2, 3]


Step = tuple[int, int | None, bool, int, str]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 6), st.none() | st.integers(0, 3), st.booleans(), st.integers(0, 5), st.sampled_from(["a", "b", "c"])
        ),
        max_size=30,
    )
)
def test_every_row_leaves_exactly_once_in_whatever_order_things_happen(steps: list[Step]) -> None:
    waiting, outstanding, cancelled = Queue(10**6), set(), set()
    for id, (rows, deadline, cancels, takes, client) in enumerate(steps):
        waiting.add(a_request(id, rows, None if deadline is None else float(id + deadline), client))
        outstanding |= {(id, row) for row in range(rows)}
        if cancels:
            waiting.remove(id // 2)
            cancelled.add(id // 2)
            outstanding -= {(request, row) for request, row in outstanding if request == id // 2}
        for request, numbers in (*waiting.take(takes), *waiting.take_late(float(id))):
            assert request.number not in cancelled
            for row in numbers:
                outstanding.remove((request.number, row))
        assert len(waiting) == len(outstanding)
    assert set(taken(waiting)) == outstanding


def test_what_has_left_does_not_pile_up_behind_what_still_waits() -> None:
    """A row that one order has served stays in the others; a request that never gets its turn must not keep it there."""
    waiting = queue(a_request(0, 1))
    for id in range(1, 5000):
        waiting.add(a_request(id, 1, deadline=1.0))
        waiting.remove(id)
    assert len(waiting) == 1
    share = waiting._shares[""]
    assert len(share.by_arrival) + len(share.by_deadline) + len(waiting._by_deadline) < 500
