"""Training a learned start: on a network whose fixed points are known."""

import pytest
import torch
from rich.console import Console

from jfb import solve
from jfb.config import ResidualNorm, Serving
from jfb.solvers import Anderson
from tests.jfb.networks import Affine
from tests.training.acceleration.test_fit import Diagonal
from training.acceleration import start
from training.acceleration.start import fit_start
from training.errors import ModelError

CPU = torch.device("cpu")
SERVING = Serving(residual_norm=ResidualNorm.ABSOLUTE, max_iterations=500)


def test_it_guesses_fixed_points_of_inputs_that_it_has_not_seen(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MAX_STEPS", 600)
    network = Affine(0.9 * torch.eye(4)).eval().requires_grad_(False)  # u* = 10 q
    inputs = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    network.learned_start, spec = fit_start(network, SERVING, inputs[:500], Anderson(), device=CPU, console=console)
    assert (spec.injection_shape, spec.state_shape, spec.bottleneck) == ((4,), (4,), start.BOTTLENECK)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    unseen = inputs[500:]
    assert (network.first_state(unseen) - 10 * unseen).norm() < 0.1 * (10 * unseen).norm()
    arguments = {"tolerance": 0.01, "max_iterations": 500, "residual_norm": ResidualNorm.ABSOLUTE}
    with_it = solve(network, unseen, **arguments)  # type: ignore[arg-type]
    without = solve(network, unseen, start=torch.zeros_like(unseen), **arguments)  # type: ignore[arg-type]
    assert with_it.iterations.sum() < 0.7 * without.iterations.sum()
    assert with_it.iterations.max() <= without.iterations.max()


def test_it_is_repeatable_and_ends_in_time(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MAX_STEPS", 3)
    network, inputs = Diagonal(torch.tensor([0.7, 0.2])), torch.randn(70, 2)
    one, two = (fit_start(network, SERVING, inputs, Anderson(), device=CPU, console=console)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert network.learned_start is None

    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 5
        return now

    monkeypatch.setattr(start, "MAX_STEPS", 10**9)
    fit_start(network, SERVING, torch.randn(5000, 2), Anderson(), device=CPU, console=console, clock=clock)
    assert now <= start.FIXED_POINT_SECONDS + start.TRAINING_SECONDS + 4 * 5


def test_a_state_that_is_too_large_is_named_and_so_are_rows_that_all_diverge(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"device": CPU, "console": console}
    with pytest.raises(ModelError, match="and none was found: every row diverged"):
        fit_start(Diagonal(torch.full((2,), 1e30)), SERVING, torch.ones(3, 2), Anderson(), **arguments)  # type: ignore[arg-type]
    monkeypatch.setattr(start, "MAX_NUMBERS", 3)
    with pytest.raises(ModelError, match=r"must have at most 3 numbers each for a learned start \(got 4 and 4\)"):
        fit_start(Diagonal(torch.zeros(4)), SERVING, torch.ones(3, 4), Anderson(), **arguments)  # type: ignore[arg-type]
