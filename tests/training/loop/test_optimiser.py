"""The optimiser: the schedule of its learning rate, and the moving average of the weights."""

import copy

import pytest
import torch
from torch import nn

from training.loop.optimiser import average_weights, learning_rate_factor


def test_a_short_run_does_not_end_with_its_initial_weights() -> None:
    """After the first step the weight is 1, so the average is 1 minus the weight of the initial 0: the product of the decays."""
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    average = average_weights(network, 0.998)
    average.update_parameters(network)  # copies
    nn.init.ones_(network.weight)
    share = 1.0
    for step in range(1, 100):
        average.update_parameters(network)
        share *= min(0.998, (1 + step) / (10 + step))
        torch.testing.assert_close(average.module.weight.item(), 1 - share)
    assert share < 1e-9 < 0.998**99


def test_a_long_run_reaches_the_decay_of_the_recipe() -> None:
    network = nn.Linear(2, 1)
    average = average_weights(network, 0.9)
    for _ in range(90):
        average.update_parameters(network)
    before = copy.deepcopy(average.module.weight)
    nn.init.constant_(network.weight, 3.0)
    average.update_parameters(network)
    torch.testing.assert_close(average.module.weight, 0.9 * before + 0.1 * torch.full_like(before, 3.0))


def test_without_a_decay_the_average_is_the_last_weights() -> None:
    network = nn.Linear(2, 1)
    average = average_weights(network, 0.0)
    for _ in range(3):
        nn.init.normal_(network.weight)
        average.update_parameters(network)
    torch.testing.assert_close(average.module.weight, network.weight)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step / 1000, 0.2) for step in range(1001)]
    assert factors[0] > 0
    assert max(factors) == factors[200] == 1.0
    assert factors[:201] == sorted(factors[:201])
    assert factors[200:] == sorted(factors[200:], reverse=True)
    assert factors[-1] == pytest.approx(0.0)
