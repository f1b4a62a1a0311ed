import math

import pytest
import torch

from jfb import ResidualNorm, residual


def test_the_norms_against_hand_computed_values() -> None:
    previous = torch.zeros(1, 2, 1, 2)
    current = torch.tensor([[[[3.0, 1.0]], [[4.0, 2.0]]]])  # positions (3, 4) and (1, 2)
    assert residual(previous, current, ResidualNorm.ABSOLUTE).item() == pytest.approx(math.sqrt(30))
    assert residual(previous, current / 2, ResidualNorm.RELATIVE).item() == pytest.approx(1.0)
    assert residual(previous, current, ResidualNorm.CHANNEL_MAX).item() == pytest.approx(5.0)
    assert residual(previous, -current, ResidualNorm.MAX).item() == 4.0


def test_relative_divides_by_the_current_iterate() -> None:
    assert residual(torch.tensor([[1.0]]), torch.tensor([[4.0]]), ResidualNorm.RELATIVE).item() == pytest.approx(0.75)


def test_channel_max_of_a_vector_state_is_its_l2_norm() -> None:
    assert residual(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), ResidualNorm.CHANNEL_MAX).tolist() == [5.0]


@pytest.mark.parametrize("norm", ResidualNorm)
def test_rows_are_measured_apart_and_a_bad_row_is_not_finite(norm: ResidualNorm) -> None:
    previous = torch.zeros(4, 3)
    current = torch.tensor([[1.0, 0, 0], [math.nan, 0, 0], [math.inf, 0, 0], [0, 0, 0]])
    measured = residual(previous, current, norm)
    assert measured.isfinite().tolist() == [True, False, False, True]
    assert measured[0] == 1
    assert measured[3] == 0, "a state that stays at zero does not move, in any norm"


def test_a_state_too_large_to_measure_does_not_count_as_converged() -> None:
    huge = torch.full((1, 2), 1e30)
    assert not residual(huge, huge * 1.000001, ResidualNorm.RELATIVE).isfinite().item()


@pytest.mark.parametrize("norm", ResidualNorm)
def test_how_channels_lie_in_memory_changes_nothing(norm: ResidualNorm) -> None:
    generator = torch.Generator().manual_seed(0)
    previous, current = torch.randn(2, 5, 6, 4, 3, generator=generator)
    before = previous.clone(), current.clone()
    last = residual(*(state.to(memory_format=torch.channels_last) for state in (previous, current)), norm)
    torch.testing.assert_close(last, residual(previous, current, norm))
    assert torch.equal(previous, before[0])
    assert torch.equal(current, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_of_zeros_has_moved_very_far_but_has_not_diverged(dtype: torch.dtype) -> None:
    """A ReLU may well put out nothing but zeros in the first iteration."""
    moved = residual(torch.ones(1, 3, dtype=dtype), torch.zeros(1, 3, dtype=dtype), ResidualNorm.RELATIVE)
    assert moved.isfinite().all()
    assert moved > 1e30
    assert residual(torch.zeros(1, 3), torch.zeros(1, 3), ResidualNorm.RELATIVE) == 0
    assert residual(torch.zeros(1, 3), torch.full((1, 3), torch.inf), ResidualNorm.RELATIVE).isnan()
