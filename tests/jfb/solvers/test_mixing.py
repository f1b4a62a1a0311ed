from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from jfb import ImplicitNetwork, ResidualNorm, Status, solve
from jfb.solvers import SOLVERS, Mixing, solvers_for
from jfb.solvers.mixing import MAX_GAIN
from tests.jfb.networks import Affine, small_mlp, small_resnet
from tests.jfb.test_solution import Cube

MAX_LOST = 8
"""Iterations that a row may lose to coefficients that were fitted to nothing."""


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_gain(matrix: Tensor, gain: float) -> Tensor:
    return gain * matrix / torch.linalg.matrix_norm(matrix, 2)


def adversaries(channels: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Coefficients that no training would find, and some that another network's might."""
    identity, ones = torch.eye(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
    return {
        "sensible": (1.3 * identity, 0.1 * ones),
        "plain": (identity, 0 * ones),
        "still": (0 * identity, 0 * ones),
        "slow": (0.1 * identity, 0 * ones),
        "backwards": (-identity, 0 * ones),
        "far": (MAX_GAIN * identity, 0 * ones),
        "far back": (-MAX_GAIN * identity, -ones),
        "drifting": (identity, ones),
        "drifting without a step": (0 * identity, ones),
        "random": (with_gain(seeded(channels, channels), 3.0), 0.9 * seeded(channels).clamp(-1, 1)),
        "wild": (with_gain(seeded(channels, channels), MAX_GAIN), seeded(channels).sign()),
        "singular": (with_gain(seeded(channels, 1) @ seeded(1, channels), 1.5), 0.5 * ones),
    }


NETWORKS = {"resnet": (small_resnet(), (1, 6, 6), 4, 0.7), "mlp": (small_mlp(), (5,), 6, 0.5)}
"""Each with its inputs' shape, its number of channels, and what a residual typically shrinks by in an iteration of Picard."""


@dataclass(frozen=True)
class Case:
    network: ImplicitNetwork
    injection: Tensor
    """Of 24 inputs, the last eight far outside of what a network of its kind is trained with."""
    channels: int
    rate: float

    def solver(self, name: str) -> Mixing:
        return Mixing(*adversaries(self.channels)[name], self.rate)


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    network, shape, channels, rate = NETWORKS[request.param]
    ordinary = torch.rand(16, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    strange = torch.cat([ordinary[:2] * 0, 1 - ordinary[:2], 100 * ordinary[:2], seeded(2, *shape, seed=2) * 1000])
    return Case(network, network.inject(torch.cat([ordinary, strange])), channels, rate)


@pytest.mark.parametrize("name", adversaries(4))
@pytest.mark.parametrize("norm", [ResidualNorm.RELATIVE, ResidualNorm.CHANNEL_MAX])
def test_whatever_the_coefficients_it_reaches_the_same_point_and_loses_a_few_iterations_at_most(
    case: Case, name: str, norm: ResidualNorm
) -> None:
    network, injection = case.network, case.injection
    solver = case.solver(name)
    for tolerance in (1e-1, 1e-3, 1e-8):
        plain = solve(network, injection, tolerance=tolerance, max_iterations=2000, residual_norm=norm)
        found = solve(network, injection, tolerance=tolerance, max_iterations=2000, residual_norm=norm, solver=solver)
        assert found.status == [Status.CONVERGED] * len(injection)
        assert (found.iterations - plain.iterations).max() <= MAX_LOST
    scale = plain.fixed_point.flatten(1).norm(dim=1).clamp_min(1).view(-1, *(1,) * (injection.dim() - 1))
    torch.testing.assert_close(found.fixed_point / scale, plain.fixed_point / scale, rtol=0, atol=1e-5)


def test_a_step_that_overshoots_costs_one_evaluation_and_the_row_is_then_picards() -> None:
    network, shape, channels, rate = NETWORKS["resnet"]
    injection = network.inject(torch.rand(16, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    far = Mixing(*adversaries(channels)["far"], rate)
    plain = solve(network, injection, tolerance=1e-8, max_iterations=500)
    found = solve(network, injection, tolerance=1e-8, max_iterations=500, solver=far)
    assert torch.equal(found.iterations, plain.iterations + 1)
    torch.testing.assert_close(found.fixed_point, plain.fixed_point, rtol=1e-12, atol=1e-12)


def test_over_relaxation_pays_where_the_spectrum_is_real_and_positive() -> None:
    """``T(u) = 0.8 u + q`` is solved in two evaluations by A = 5 I, as ``u − T(u)`` is linear."""
    network = Affine(0.8 * torch.eye(4, dtype=torch.float64))
    injection = seeded(3, 4)
    solver = Mixing(5 * torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), 0.8)
    found = solve(network, injection, tolerance=1e-9, max_iterations=100, solver=solver)
    assert found.iterations.tolist() == [2, 2, 2]
    torch.testing.assert_close(found.fixed_point, 5 * injection)


@pytest.mark.parametrize("name", ["sensible", "random", "far"])
def test_rows_are_the_same_alone_and_in_company(case: Case, name: str) -> None:
    network, injection = case.network, case.injection
    solver = case.solver(name)
    tolerance = torch.tensor([1e-2, 1e-7], dtype=torch.float64).repeat(len(injection) // 2)
    together = solve(network, injection, tolerance=tolerance, max_iterations=1000, solver=solver)
    for i in range(len(injection)):
        alone = solve(network, injection[i : i + 1], tolerance=tolerance[i].item(), max_iterations=1000, solver=solver)
        assert alone.iterations.item() == together.iterations[i].item()
        torch.testing.assert_close(alone.fixed_point[0], together.fixed_point[i], rtol=1e-9, atol=1e-9)


def test_a_row_that_starts_at_its_fixed_point_stays(case: Case) -> None:
    network, injection = case.network, case.injection
    solver = case.solver("sensible")
    there = solve(network, injection, tolerance=1e-12, max_iterations=2000).fixed_point
    again = solve(network, injection, tolerance=1e-9, max_iterations=10, solver=solver, start=there)
    assert again.iterations.tolist() == [1] * len(injection)


def test_a_diverging_row_ends_alone() -> None:
    injection = torch.tensor([[0.1], [5.0], [0.2]], dtype=torch.float64)
    solver = Mixing(torch.full((1, 1), 1.2, dtype=torch.float64), torch.full((1,), 0.1, dtype=torch.float64), 0.8)
    arguments = {"tolerance": 1e-9, "max_iterations": 200, "residual_norm": ResidualNorm.ABSOLUTE, "solver": solver}
    found = solve(Cube(), injection, **arguments)  # type: ignore[arg-type]
    assert [found.status[i] for i in (0, 1, 2)] == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    alone = solve(Cube(), injection[[0, 2]], **arguments)  # type: ignore[arg-type]
    assert torch.equal(alone.iterations, found.iterations[[0, 2]])


def test_its_tensors_make_it_again() -> None:
    solver = Mixing(with_gain(seeded(3, 3), 1.5).float(), torch.tensor([0.1, 0.2, -0.3]), 0.8)
    again = Mixing.from_tensors(solver.tensors)
    assert torch.equal(again.matrix, solver.matrix)
    assert torch.equal(again.momentum, solver.momentum)
    assert again.rate == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matrix": torch.eye(3)[:2]}, r"matrix: must have shape \[channels, channels\] \(got \[2, 3\]\)"),
        ({"momentum": torch.zeros(2)}, r"momentum: must have shape \[3\], as the matrix has \(got \[2\]\)"),
        ({"matrix": 17 * torch.eye(3)}, r"matrix: must have a spectral norm of at most 16 \(got 17\)"),
        ({"matrix": torch.full((3, 3), torch.nan)}, r"matrix: must have a spectral norm of at most 16 \(got inf\)"),
        ({"momentum": torch.full((3,), torch.nan)}, r"momentum: must be between -1 and 1 \(got nan\)"),
        ({"momentum": torch.full((3,), 1.5)}, r"momentum: must be between -1 and 1 \(got 1.5\)"),
        ({"rate": torch.tensor(1.0)}, r"rate: must be between 0 and 1 \(got 1\)"),
        ({"rate": torch.tensor(torch.nan)}, r"rate: must be between 0 and 1 \(got nan\)"),
        ({"rate": torch.zeros(2)}, r"rate: must be one number \(got shape \[2\]\)"),
        ({"matrix": torch.eye(3).double()}, r"matrix: must be torch.float32 \(got torch.float64\)"),
        ({"more": torch.zeros(2)}, r"tensors: must be matrix, momentum, rate \(got matrix, momentum, more, rate\)"),
    ],
)
def test_tensors_that_make_no_solver_are_rejected(changes: dict[str, Tensor], message: str) -> None:
    tensors = Mixing(torch.eye(3), torch.zeros(3), 0.5).tensors
    with pytest.raises(ValueError, match=message):
        Mixing.from_tensors(tensors | changes)


def test_it_rejects_states_with_another_number_of_channels() -> None:
    solver = Mixing(torch.eye(3), torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"matrix: must have as many rows as the state has channels, 4 \(got 3\)"):
        solver.start(torch.zeros(2, 4))


def test_it_belongs_to_one_network_and_so_is_not_offered_to_all() -> None:
    assert "mixing" in SOLVERS
    assert "mixing" not in solvers_for(ImplicitNetwork)
