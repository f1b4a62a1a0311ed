import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jfb.rows import close_gaps, per_row


@given(st.lists(st.booleans(), max_size=20))
def test_close_gaps_keeps_exactly_the_rows_that_go_on_and_keeps_tensors_aligned(ended: list[bool]) -> None:
    flags = torch.tensor(ended, dtype=torch.bool)
    index = torch.arange(len(ended))
    values = torch.stack([index * 10, index * 100], dim=1)
    expected = {i for i, gone in enumerate(ended) if not gone}
    index, values = close_gaps(flags.numpy(), index, values)
    assert set(index.tolist()) == expected
    assert len(index) == len(expected)
    assert values.tolist() == [[i * 10, i * 100] for i in index.tolist()]


def test_close_gaps_moves_no_more_rows_than_ended() -> None:
    index = torch.arange(100)
    ended = torch.zeros(100, dtype=torch.bool)
    ended[[3, 50]] = True
    (left,) = close_gaps(ended.numpy(), index.clone())
    assert (left != index[:98]).sum() <= 2


def test_per_row_spreads_a_number_and_rejects_a_wrong_length() -> None:
    assert per_row("tolerance", torch.tensor(0.5), 3, like=torch.zeros(1)).tolist() == [0.5] * 3
    with pytest.raises(ValueError, match=r"tolerance: must be a number or have shape \[3\].*got shape \[2\]"):
        per_row("tolerance", torch.zeros(2), 3, like=torch.zeros(1))
