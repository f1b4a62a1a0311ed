import pytest
import torch
from torch.nn import functional as F

from jfb import solve
from jfb.contraction import local_contraction_factor, operator_norm_bound, scale_to_unit_norm
from tests.jfb.networks import affine, small_mlp, small_resnet


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3)])
def test_the_bound_of_a_matrix_is_its_norm(shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, dtype=torch.float64)
    norm = float(torch.linalg.matrix_norm(weight, 2))
    assert norm * (1 - 1e-12) <= float(operator_norm_bound(weight)) <= norm * 1.02


@pytest.mark.parametrize("shape", [(4, 4, 3, 3), (6, 3, 3, 3), (3, 6, 5, 5), (2, 2, 1, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_of_a_convolution_is_over_its_dense_matrix_and_not_far_over(shape: tuple[int, ...], seed: int) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = 11
    padding = (shape[2] // 2, shape[3] // 2)
    basis = torch.eye(shape[1] * size * size, dtype=torch.float64).view(-1, shape[1], size, size)
    dense = F.conv2d(basis, weight, padding=padding).flatten(1).T
    norm = float(torch.linalg.matrix_norm(dense, 2))
    coarse = float(operator_norm_bound(weight, grid=8, squarings=3))
    fine = float(operator_norm_bound(weight, grid=24))
    assert norm <= fine <= coarse * 1.001
    assert fine <= norm * 1.3


def test_the_worst_kernel_is_bounded_too() -> None:
    """A single frequency between the grid's points is where sampling alone would be too small."""
    for phase in torch.linspace(0, torch.pi, 17, dtype=torch.float64):
        weight = torch.cos(phase * torch.arange(-1, 2, dtype=torch.float64))[None, None, None, :]
        frequencies = torch.linspace(0, 2 * torch.pi, 10001, dtype=torch.float64)
        exact = (weight.flatten()[None] * torch.exp(-1j * frequencies[:, None] * torch.arange(3))).sum(1).abs().max()
        assert exact <= operator_norm_bound(weight, grid=8)


def test_scaling_leaves_small_weights_alone_and_brings_large_ones_to_one() -> None:
    small = torch.randn(4, 4, 3, 3) * 1e-3
    before = small.clone()
    scale_to_unit_norm(small)
    assert torch.equal(small, before)
    large = torch.randn(4, 4, 3, 3) * 100
    scale_to_unit_norm(large)
    assert 0.8 <= float(operator_norm_bound(large, grid=24)) <= 1


def test_a_zero_weight_has_norm_zero() -> None:
    assert float(operator_norm_bound(torch.zeros(2, 2, 3, 3))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("network", [small_resnet(), small_mlp()], ids=["resnet", "mlp"])
def test_step_contracts_by_no_more_than_its_bound_says(network: torch.nn.Module) -> None:
    inputs = torch.rand(64, *((1, 6, 6) if hasattr(network, "stem") else (5,)), dtype=torch.float64)
    injection = network.inject(inputs)
    a, b = torch.randn_like(injection) * 3, torch.randn_like(injection) * 3
    apart = (a - b).flatten(1).norm(dim=1)
    moved = (network.step(a, injection) - network.step(b, injection)).flatten(1).norm(dim=1)
    bound = network.contraction_bound()
    assert bound < 0.95
    assert (moved <= bound * apart).all()
    assert (moved > 0.01 * apart).any(), "a map that contracts everything to a point would prove nothing"


def test_the_local_factor_of_an_affine_map_is_the_norm_of_its_matrix() -> None:
    network = affine(0.7)
    factors = local_contraction_factor(network, torch.randn(3, 4).double(), torch.zeros(3, 4).double(), iterations=200)
    torch.testing.assert_close(factors, torch.full((3,), 0.7, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_local_factor_is_the_norm_of_the_dense_jacobian_row_by_row() -> None:
    network = small_resnet()
    injection = network.inject(torch.rand(3, 1, 6, 6, dtype=torch.float64))
    state = solve(network, injection, tolerance=1e-12, max_iterations=1000).fixed_point
    factors = local_contraction_factor(network, state, injection, iterations=500)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda u, i=i: network.step(u.view(1, 4, 3, 3), injection[i : i + 1]).flatten(), state[i].flatten()
        )
        assert float(factors[i]) == pytest.approx(float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-3)
