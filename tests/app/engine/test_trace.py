"""Traces: the state at each position, against what it was."""

import numpy as np
import pytest
import torch

from app.engine.trace import ALL_UNTIL, MAX_SIDE, THEN_EVERY, magnitude, trace


def test_the_magnitude_is_the_norm_over_the_channels_up_to_a_step_of_the_scale() -> None:
    states = torch.randn(3, 5, 7, 9)
    for state, found in zip(states, trace(states, [1, 2, 3]), strict=True):
        assert found is not None
        expected = np.linalg.norm(state.numpy(), axis=0)
        shares = np.frombuffer(found.shares, np.uint8).reshape(found.height, found.width)
        assert found.peak == pytest.approx(expected.max(), rel=1e-6)
        assert shares * (found.peak / 255) == pytest.approx(expected, abs=0.51 * found.peak / 255)


def test_a_larger_state_is_pooled_by_maximum() -> None:
    states = torch.zeros(1, 2, 3 * MAX_SIDE, 2)
    states[0, 1, 4, 1] = -7
    pooled = magnitude(states)
    assert pooled.shape == (1, MAX_SIDE, 2)
    assert pooled.nonzero().tolist() == [[0, 1, 1]]
    assert float(pooled.max()) == 7


def test_a_state_without_positions_is_a_line_of_its_entries() -> None:
    assert magnitude(torch.tensor([[3.0, -4.0, 0.0]])).tolist() == [[[3.0, 4.0, 0.0]]]


def test_a_state_of_zeros_or_in_low_precision_is_shown_and_one_that_is_not_finite_is_not() -> None:
    (zeros,) = trace(torch.zeros(1, 2, 3, 3), [1])
    assert zeros is not None
    assert (zeros.peak, zeros.shares) == (0, bytes(9))
    (low,) = trace(torch.full((1, 1, 2, 2), 2.0, dtype=torch.bfloat16), [1])
    assert low is not None
    assert (low.peak, low.shares) == (2, bytes([255] * 4))
    for wrong in (torch.nan, torch.inf):
        assert trace(torch.tensor([0.0, wrong])[None, None, None], [1]) == [None]


def test_late_iterations_are_shown_now_and_then() -> None:
    last = ALL_UNTIL + 3 * THEN_EVERY
    found = trace(torch.ones(last, 1, 1, 1), list(range(1, last + 1)))
    shown = [iteration for iteration, state in enumerate(found, 1) if state is not None]
    assert shown == [*range(1, ALL_UNTIL + 1), *range(ALL_UNTIL + THEN_EVERY, last + 1, THEN_EVERY)]
