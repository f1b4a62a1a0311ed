"""Numbers in JSON: arrays as NumPy makes them of the lists, and errors where there is none."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference import numbers
from app.inference.numbers import NumbersError, parse_numbers

FLOAT = np.dtype(np.float64)
shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "],[", '"', "a,b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "[", ","]), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "PIECE_BYTES", 16)


@settings(deadline=None)
@given(shapes, st.integers(0, 3), st.sampled_from([None, 1]), st.randoms(use_true_random=False))
def test_valid_lists_are_numpys(shape: list[int], rows: int, indent: int | None, random: Any) -> None:
    lists = (np.array([random.uniform(-1e3, 1e3) for _ in range(rows * int(np.prod(shape)))])).reshape(rows, *shape)
    array = parse_numbers(json.dumps(lists.tolist(), indent=indent).encode(), shape, FLOAT)
    assert array.shape == lists.shape
    assert (array == lists).all()


@settings(deadline=None, max_examples=300)
@given(values, shapes)
def test_what_is_accepted_is_what_numpy_reads(content: Any, shape: list[int]) -> None:
    try:
        array = parse_numbers(json.dumps(content).encode(), shape, FLOAT)
    except NumbersError:
        return
    assert isinstance(content, list)
    assert "true" not in json.dumps(content)
    assert (array == np.array(content, dtype=np.float64).reshape(array.shape)).all()


@pytest.mark.parametrize(
    ("text", "shape", "index"),
    [
        ("[[1, 2], [3, null]]", [2], (1, 1)),
        ('[[1, 2], ["x", 4]]', [2], (1, 0)),
        ("[[1, 2], [3, 4, 5]]", [2], (1,)),
        ("[[1, 2], [3, 4], 5]", [2], (2,)),
        ("[[[1]], [1]]", [1, 1], (1,)),
        ("[1, 2, 1e999]", [], (2,)),
        ("7", [2], ()),
        ("[[]]", [1], (0,)),
        ("[5]", [1], ()),
    ],
)
def test_an_error_has_the_index_of_the_row_or_entry(text: str, shape: list[int], index: tuple[int, ...]) -> None:
    with pytest.raises(NumbersError) as error:
        parse_numbers(text.encode(), shape, FLOAT)
    assert error.value.index == index


def test_integers_stay_integers_and_are_within_their_type() -> None:
    largest = 2**63 - 1
    assert parse_numbers(f"[{largest}, 0]".encode(), [], np.dtype(np.int64), 2).tolist() == [largest, 0]
    with pytest.raises(NumbersError) as error:
        parse_numbers(b"[1, 256]", [], np.dtype(np.uint8))
    assert (error.value.index, error.value.value) == ((1,), 256)


def test_a_count_of_any_size_costs_nothing() -> None:
    with pytest.raises(NumbersError):
        parse_numbers(b"[[1]]", [1], FLOAT, count=2**62)
