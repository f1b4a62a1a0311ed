"""Rows come and go: what is on the device and what is on the host stay together, and nothing moves that need not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.slots import SlotTable

SLOTS = 6


def make_table() -> SlotTable:
    rows = torch.zeros(SLOTS, 2)
    return SlotTable(rows, rows, {"before": rows})


def admit(table: SlotTable, numbers: list[int]) -> None:
    point = torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 2)
    limits = {"tolerance": [1 / (number + 1) for number in numbers], "max_iterations": 9, "deadline": np.inf, "by_label": False}
    table.admit(point=point, injection=point + 100, memory={"before": point + 200}, request=numbers, row=0, **limits)


def remove(table: SlotTable, numbers: set[int]) -> None:
    table.remove(np.isin(table.request, list(numbers)))


def check(table: SlotTable, expected: set[int]) -> None:
    assert table.active == len(table.request) == len(expected)
    assert set(table.request.tolist()) == expected
    assert table.point[:, 0].tolist() == table.request.tolist()
    assert table.injection[:, 1].tolist() == (table.request + 100).tolist()
    assert table.memory["before"][:, 0].tolist() == (table.request + 200).tolist()
    assert table.tolerance == pytest.approx(1 / (table.request + 1))
    assert (table.iterations == 0).all()
    assert np.isnan(table.margin).all()


@given(st.lists(st.tuples(st.sets(st.integers(0, SLOTS - 1)), st.lists(st.integers(0, SLOTS), max_size=2)), max_size=8))
def test_each_row_keeps_what_it_has_whatever_comes_and_goes(turns: list[tuple[set[int], list[int]]]) -> None:
    table, rows, next_number = make_table(), set[int](), 0
    for places, arriving in turns:
        leaving = {number for place, number in enumerate(table.request.tolist()) if place in places}
        remove(table, leaving)
        rows -= leaving
        assert table.active == len(rows)
        for wanted in arriving:
            new = list(range(next_number, next_number + min(wanted, SLOTS - table.active)))
            if new:
                admit(table, new)
            next_number += len(new)
            rows |= set(new)
        table.close_gaps()
        check(table, rows)
        table.iterations += 1
        table.margin[:] = 1
        table.close_gaps()  # does nothing
        assert (table.iterations == 1).all()
        table.iterations[:], table.margin[:] = 0, np.nan


def test_rows_that_arrive_take_the_places_of_those_that_have_ended() -> None:
    table = make_table()
    admit(table, [0, 1, 2, 3, 4, 5])
    remove(table, {1, 3})
    admit(table, [6])
    admit(table, [7])
    table.close_gaps()
    assert table.request.tolist() == [0, 6, 2, 7, 4, 5]
    remove(table, {0, 2, 5})
    admit(table, [8])
    table.close_gaps()
    assert table.request.tolist() == [8, 6, 4, 7], "the last row moves into the gap that is left"
