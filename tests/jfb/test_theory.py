"""The theorems of the paper, by numbers: every matrix written out, in float64, with more weights than latent entries."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb import ImplicitNetwork
from jfb.architectures import ImplicitMLP
from jfb.gradients import JFB, Gradient, Jacobian, Neumann
from jfb.theory import DenseMatrices, Sheared, dense_matrices, fixed_point
from tests.jfb.gradients.test_gradients import EXACT, cosine
from tests.jfb.networks import small_mlp, small_monotone_mlp, small_resnet

LABEL = 1
ORIGIN = torch.zeros(1, 2, dtype=torch.float64)


def one_input(seed: int = 0, shape: tuple[int, ...] = (5,)) -> Tensor:
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(network: ImplicitNetwork, inputs: Tensor, gradient: Gradient) -> tuple[Tensor, Tensor]:
    """What training would descend along: for the weights of T, and for those of S."""
    network.zero_grad()
    state, _ = gradient(network, network.inject(inputs), EXACT)
    F.cross_entropy(network.readout(state), torch.tensor([LABEL])).backward()
    named = [(name, p.grad.flatten()) for name, p in network.named_parameters() if p.grad is not None]
    of_map = torch.cat([grad for name, grad in named if "classify" not in name])
    return of_map, torch.cat([grad for name, grad in named if "classify" in name])


def orthogonal_mlp(contraction: float, seed: int = 0) -> ImplicitMLP:
    """``u = γ W u + q`` with W orthogonal, and no weights but W's: ``MᵀM`` is then ``‖γ u‖²`` times the identity."""
    torch.manual_seed(seed)
    network = ImplicitMLP((5,), 3, width=6, contraction=contraction, slope=1.0).double().eval()
    nn.init.orthogonal_(network.latent.weight)
    network.encode.requires_grad_(False)
    return network


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "shape"), [(small_mlp, (5,)), (small_resnet, (1, 6, 6))], ids=["mlp", "resnet"])
def test_jfb_is_the_preconditioned_gradient(make: Callable[..., ImplicitNetwork], shape: tuple[int, ...], seed: int) -> None:
    """Eq. 19 and 20."""
    network, inputs = make(seed=seed), one_input(seed, shape)
    found, found_readout = directions(network, inputs, JFB())
    exact, exact_readout = directions(network, inputs, Jacobian(tolerance=1e-14, max_iterations=5000))
    matrices = dense_matrices(network, inputs, LABEL)
    m, j = matrices.weights_to_state, matrices.system
    assert m.shape[0] > m.shape[1] == torch.linalg.matrix_rank(m), "full column rank, and more weights than latent entries"
    torch.testing.assert_close(exact, matrices.exact, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found, m @ j.T @ torch.linalg.pinv(m) @ exact, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found_readout, exact_readout, rtol=1e-9, atol=1e-12)
    assert float((found - exact).norm()) > 1e-3 * float(exact.norm()), "or the preconditioner had nothing to do"


@pytest.mark.parametrize("seed", range(5))
def test_jfb_descends_where_the_assumption_on_the_conditioning_holds(seed: int) -> None:
    """Theorem 0.2, with the angle that its proof gives: ``cos ≥ (1/κ − γ) / (1 + γ)``."""
    matrices = dense_matrices(small_mlp(seed=seed, contraction=0.3), one_input(seed), LABEL)
    gamma, kappa = matrices.contraction_factor, matrices.condition
    assert kappa < 1 / gamma
    assert cosine(matrices.jfb, matrices.exact) >= (1 / kappa - gamma) / (1 + gamma) > 0


def test_a_relu_takes_columns_from_m() -> None:
    """Where φ is flat the weights cannot move an entry: the assumption of full rank is one on φ, too."""
    matrices = dense_matrices(small_monotone_mlp(seed=2), one_input(2), LABEL)
    state = matrices.weights_to_state.norm(dim=0)
    assert 0 < int((state == 0).sum()) == 6 - torch.linalg.matrix_rank(matrices.weights_to_state)
    assert matrices.condition > 1e20


def smallest_cosine(network: ImplicitNetwork, inputs: Tensor) -> tuple[float, DenseMatrices]:
    """Over many losses, whose gradients point anywhere."""
    matrices = dense_matrices(network, inputs, LABEL)
    m, j = matrices.weights_to_state, matrices.system
    losses = torch.randn(len(j), 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosines = F.cosine_similarity(m @ losses, m @ torch.linalg.solve(j.T, losses), dim=0)
    return float(cosines.amin()), matrices


def test_the_angle_grows_with_the_contraction_factor_and_is_at_most_its_arcsine_when_well_conditioned() -> None:
    """With W's weights alone MᵀM is a multiple of the identity, and then the sine of the angle is at most γ."""
    before = 1.0
    for gamma in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        found, matrices = smallest_cosine(orthogonal_mlp(gamma), one_input())
        assert matrices.condition == pytest.approx(1, abs=1e-9)
        assert matrices.contraction_factor == pytest.approx(gamma, rel=1e-9)
        assert (1 - gamma**2) ** 0.5 <= found < before
        before = found
    assert before < 0.3


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_where_the_conditioning_is_bad_jfb_climbs(gamma: float) -> None:
    threshold = 4 / gamma**2
    for condition in (1.0, 0.9 * threshold, 1.1 * threshold, 100 * threshold):
        network = Sheared(gamma, condition)
        matrices = dense_matrices(network, ORIGIN, LABEL)
        assert matrices.condition == pytest.approx(condition, rel=1e-9)
        assert matrices.contraction_factor == pytest.approx(gamma, rel=1e-9)
        assert (cosine(matrices.jfb, matrices.exact) > 0) == (condition < threshold)

        def loss(weights: Tensor, network: Sheared = network) -> float:
            with torch.no_grad():
                network.weights.copy_(weights)
                logits = network.readout(fixed_point(network, network.inject(ORIGIN)))
                return float(F.cross_entropy(logits, torch.tensor([LABEL])))

        state, _ = JFB()(network, network.inject(ORIGIN), EXACT)
        F.cross_entropy(network.readout(state), torch.tensor([LABEL])).backward()
        assert network.weights.grad is not None
        direction = network.weights.grad.clone()
        step = 1e-4 / float(direction.norm())
        start = network.weights.detach().clone()
        assert (loss(start - step * direction) < loss(start)) == (condition < threshold)


def test_an_ordinary_convolutional_network_can_be_such_a_case_too() -> None:
    """φ multiplies rows of M by 1 or by its slope, so κ is in the hundreds. Then some loss makes JFB climb."""
    network, inputs = small_resnet(seed=3, contraction=0.99), one_input(3, (1, 6, 6))
    network.stem.requires_grad_(False)
    matrices = dense_matrices(network, inputs, LABEL)
    assert matrices.contraction_factor < 1
    gram = matrices.weights_to_state.T @ matrices.weights_to_state
    product = matrices.system @ gram
    values, vectors = torch.linalg.eigh((product + product.T) / 2)
    assert values[0] < 0
    assert matrices.condition > 1 / matrices.contraction_factor
    with torch.no_grad():
        network.classify.weight[LABEL] = matrices.system.T @ vectors[:, 0]
        network.classify.weight[[0, 2]] = 0
    climbing, _ = directions(network, inputs, JFB())
    gradient, _ = directions(network, inputs, Jacobian(tolerance=1e-14, max_iterations=20_000))
    assert cosine(climbing, gradient) < 0


def test_an_inexact_fixed_point_costs_little_until_it_is_far() -> None:
    """Corollary 0.1: the JFB direction at a point at a relative distance of ε from the fixed point."""
    for seed in range(3):
        network, inputs = small_mlp(seed=seed, contraction=0.6), one_input(seed)
        with torch.no_grad():
            limit = fixed_point(network, network.inject(inputs))
        exact = dense_matrices(network, inputs, LABEL).exact
        at_limit = cosine(dense_matrices(network, inputs, LABEL).jfb, exact)
        generator = torch.Generator().manual_seed(seed)
        deviations = []
        for epsilon in (1e-1, 1e-2, 1e-3):
            found = []
            for _ in range(10):
                away = torch.randn(limit.shape, generator=generator, dtype=torch.float64)
                point = limit + epsilon * limit.norm() * away / away.norm()
                found.append(cosine(dense_matrices(network, inputs, LABEL, point).jfb, exact))
            assert min(found) > 0
            deviations.append(max(abs(value - at_limit) for value in found))
        assert deviations[2] < 0.1 * deviations[0]
        far = [
            cosine(
                dense_matrices(network, inputs, LABEL, limit + 1e3 * torch.randn(1, 6, generator=generator).double()).jfb, exact
            )
            for _ in range(30)
        ]
        assert min(far) < 0, "from far enough away the direction says nothing"


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_the_neumann_gradient_nears_the_exact_one_by_a_factor_of_gamma_per_term(gamma: float) -> None:
    """Eq. 22. With W orthogonal the remainder shrinks by γ exactly, with any W at least by the bound of it."""
    terms = range(0, 12)
    network, inputs = orthogonal_mlp(gamma), one_input()
    exact, _ = directions(network, inputs, Jacobian(tolerance=1e-14, max_iterations=5000))
    errors = [float((directions(network, inputs, Neumann(terms=k))[0] - exact).norm()) for k in terms]
    for k in terms[:-1]:
        assert errors[k + 1] / errors[k] == pytest.approx(gamma, rel=1e-6)

    network = small_mlp(contraction=gamma)
    matrices = dense_matrices(network, inputs, LABEL)
    scale = float(torch.linalg.matrix_norm(matrices.weights_to_state, 2) * matrices.pulled_back.norm())
    for k in terms:
        error = float((directions(network, inputs, Neumann(terms=k))[0] - matrices.exact).norm())
        assert error <= scale * gamma ** (k + 1) / (1 - gamma)
