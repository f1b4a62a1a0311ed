"""The moving average against what its docstring says."""

import copy

import torch
from torch import nn

from training.averaging import averaging


def test_a_short_run_does_not_end_with_the_weights_it_began_with() -> None:
    """All steps but the first are at 1, so the average is 1 less the first weights' share: the product of the decays."""
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    average = averaging(network, 0.998)  # type: ignore[arg-type]
    average.update_parameters(network)  # copies
    nn.init.ones_(network.weight)
    share = 1.0
    for step in range(1, 100):
        average.update_parameters(network)
        share *= min(0.998, (1 + step) / (10 + step))
        torch.testing.assert_close(average.module.weight.item(), 1 - share)
    assert share < 1e-9 < 0.998**99


def test_a_long_run_has_the_decay_that_was_asked_for() -> None:
    network = nn.Linear(2, 1)
    average = averaging(network, 0.9)  # type: ignore[arg-type]
    for _ in range(90):
        average.update_parameters(network)
    before = copy.deepcopy(average.module.weight)
    nn.init.constant_(network.weight, 3.0)
    average.update_parameters(network)
    torch.testing.assert_close(average.module.weight, 0.9 * before + 0.1 * torch.full_like(before, 3.0))


def test_without_a_decay_the_average_is_the_last_weights() -> None:
    network = nn.Linear(2, 1)
    average = averaging(network, 0.0)  # type: ignore[arg-type]
    for _ in range(3):
        nn.init.normal_(network.weight)
        average.update_parameters(network)
    torch.testing.assert_close(average.module.weight, network.weight)
