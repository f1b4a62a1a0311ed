"""Rows begin in bfloat16 and end in float32: as near to the fixed point as in float32 alone, and no row minds the others."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from jfb import ImplicitNetwork, ResidualNorm, Status, solve
from jfb.mixed_precision import MARGIN, ROUNDOFF
from jfb.monotone_network import MonotoneNetwork
from jfb.norms import row_norms
from jfb.solvers import SOLVERS, Anderson, Picard, Solver, solvers_for
from tests.jfb.networks import Affine, small_mlp, small_resnet

NETWORKS = [(small_resnet(contraction=0.95), (1, 6, 6)), (small_mlp(contraction=0.95, width=48), (5,))]


class Bfloat16(ImplicitNetwork):
    """Counts the rows that are computed in bfloat16, each by itself, as rounding may depend on the size of a batch."""

    def __init__(self, network: ImplicitNetwork) -> None:
        super().__init__()
        self.network = deepcopy(network).bfloat16()
        self.rows = 0

    def inject(self, inputs: Tensor) -> Tensor:
        raise AssertionError("rows are injected in float32")

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        assert state.dtype == injection.dtype == torch.bfloat16
        self.rows += state.shape[0]
        return torch.cat([self.network.step(*row) for row in zip(state.split(1), injection.split(1), strict=True)])

    def readout(self, state: Tensor) -> Tensor:
        raise AssertionError("answers are read out in float32")


@pytest.mark.parametrize("norm", ResidualNorm)
@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=["picard", "anderson"])
@pytest.mark.parametrize(("network", "shape"), NETWORKS, ids=["resnet", "mlp"])
@torch.no_grad()
def test_the_end_is_as_near_to_the_fixed_point_as_that_of_float32(
    network: ImplicitNetwork, shape: tuple[int, ...], solver: Solver, norm: ResidualNorm
) -> None:
    torch.manual_seed(0)
    inputs = torch.rand(200, *shape, dtype=torch.float64)
    exact = solve(network, network.inject(inputs), tolerance=1e-13, max_iterations=5000).fixed_point
    single = deepcopy(network).float()
    injection = single.inject(inputs.float())
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        low_precision = Bfloat16(single)
        plain, mixed = (
            solve(
                single,
                injection,
                tolerance=tolerance,
                max_iterations=2000,
                residual_norm=norm,
                solver=solver,
                low_precision=coarse,
            )
            for coarse in (None, low_precision)
        )
        assert mixed.status == [Status.CONVERGED] * 200
        assert (mixed.residual <= tolerance).all()
        far, near = (float(row_norms(found.fixed_point.double() - exact).mean()) for found in (mixed, plain))
        assert far <= 1.1 * near
    assert low_precision.rows > 200, "the strictest tolerance leaves the most to do in bfloat16"


@torch.no_grad()
def test_the_figures_of_a_row_are_those_of_its_last_step_in_float32() -> None:
    network = small_resnet().float()
    injection = network.inject(torch.rand(50, 1, 6, 6))
    found = solve(network, injection, tolerance=1e-3, max_iterations=500, low_precision=Bfloat16(network))
    again = network.step(found.fixed_point, injection)
    moved = row_norms(again - found.fixed_point) / row_norms(again)
    assert (moved <= 1e-3).all(), "one more step of a contraction moves less than the last one"
    assert moved == pytest.approx(found.residual.numpy(), rel=0.5)


@torch.no_grad()
def test_rows_are_computed_the_same_alone_and_in_a_batch() -> None:
    network = small_resnet().float()
    injection = network.inject(torch.rand(24, 1, 6, 6))
    tolerance = torch.tensor([1e-1, 1e-4]).repeat(12)
    low_precision = Bfloat16(network)
    together = solve(network, injection, tolerance=tolerance, max_iterations=500, low_precision=low_precision)
    for i in range(24):
        alone = solve(
            network, injection[i : i + 1], tolerance=tolerance[i].item(), max_iterations=500, low_precision=low_precision
        )
        assert alone.iterations.item() == together.iterations[i].item()
        torch.testing.assert_close(alone.fixed_point[0], together.fixed_point[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cap", [1, 2, 3])
@torch.no_grad()
def test_the_last_iteration_that_a_cap_allows_is_one_of_float32(cap: int) -> None:
    network = small_resnet(contraction=0.95).float()
    injection = network.inject(torch.rand(10, 1, 6, 6))
    low_precision = Bfloat16(network)
    found = solve(network, injection, tolerance=1e-6, max_iterations=cap, low_precision=low_precision)
    assert found.iterations.tolist() == [cap] * 10
    assert found.status == [Status.MAX_ITERATIONS] * 10
    assert low_precision.rows == 10 * (cap - 1)


@torch.no_grad()
def test_a_tolerance_that_bfloat16_is_too_coarse_for_is_not_tried_in_it_for_long() -> None:
    """``u = 0.5 u + q``: the residual, relative, is about ``2^−k`` after k iterations, so how many run in bfloat16 is known."""
    network = Affine(0.5 * torch.eye(4))
    low_precision = Bfloat16(network)
    solve(network, torch.ones(1, 4), tolerance=1e-6, max_iterations=100, low_precision=low_precision)
    floor = MARGIN * ROUNDOFF
    residuals = [0.5**k / (2 * (1 - 0.5 ** (k + 1))) for k in range(20)]  # of iteration k + 1
    assert low_precision.rows == 1 + sum(moved > floor for moved in residuals)


@torch.no_grad()
def test_a_row_that_diverges_in_bfloat16_has_diverged() -> None:
    network = Affine(1e30 * torch.eye(2))
    found = solve(
        network, torch.tensor([[1.0, 1.0], [0.0, 0.0]]), tolerance=1e-3, max_iterations=50, low_precision=Bfloat16(network)
    )
    assert found.status == [Status.DIVERGED, Status.CONVERGED]


def test_solvers_that_split_the_map_leave_low_precision_alone() -> None:
    assert {name for name in solvers_for(MonotoneNetwork) if not SOLVERS[name]().splits} == {"picard", "anderson"}
