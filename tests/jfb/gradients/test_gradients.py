"""Every gradient against a dense float64 solve, against finite differences, and against each other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jfb import ImplicitNetwork, solve
from jfb.architectures import build
from jfb.gradients import GRADIENTS, JFB, Explicit, Gradient, Jacobian, Neumann, Search, Unrolled
from jfb.status import Status
from tests.jfb.networks import small_mlp, small_resnet

EXACT = Search(tolerance=1e-14, max_iterations=3000)
NETWORKS = {"mlp": small_mlp, "resnet": small_resnet}
INPUTS = {"mlp": (5,), "resnet": (1, 6, 6)}


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[ImplicitNetwork, Tensor, Tensor]:
    network = NETWORKS[request.param]()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(4, *INPUTS[request.param], generator=generator, dtype=torch.float64)
    return network, inputs, torch.tensor([0, 1, 2, 0])


def direction(network: ImplicitNetwork, inputs: Tensor, labels: Tensor, gradient: Gradient, search: Search = EXACT) -> Tensor:
    """All parameters' gradients in one vector."""
    network.zero_grad()
    state, _ = gradient(network, network.inject(inputs), search)
    F.cross_entropy(network.readout(state), labels).backward()
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in network.parameters()])


def dense_direction(network: ImplicitNetwork, inputs: Tensor, labels: Tensor, terms: int | None = None) -> Tensor:
    """The gradient of every row's loss, with ``J = ∂T/∂u`` written out: ``I − J`` solved with (eq. 14), or, given a number of
    terms, its inverse replaced by ``I + J + … + Jᵏ`` (eq. 22)."""
    total: Tensor | None = None
    for one, label in zip(inputs, labels, strict=True):
        injection = network.inject(one[None])
        point = EXACT(network, injection).fixed_point.requires_grad_()
        shape = point.shape

        def step(flat: Tensor, injection: Tensor = injection, shape: torch.Size = shape) -> Tensor:
            return network.step(flat.view(shape), injection.detach()).flatten()

        jacobian = torch.autograd.functional.jacobian(step, point.detach().flatten())
        loss = F.cross_entropy(network.readout(point), label[None], reduction="sum") / len(labels)
        parameters = list(network.parameters())
        outer = torch.autograd.grad(loss, [point, *parameters], allow_unused=True)
        assert outer[0] is not None
        identity = torch.eye(len(jacobian), dtype=torch.float64)
        if terms is None:
            adjoint = torch.linalg.solve((identity - jacobian).T, outer[0].flatten())
        else:
            series = sum((torch.linalg.matrix_power(jacobian, k) for k in range(terms + 1)), torch.zeros_like(jacobian))
            adjoint = series.T @ outer[0].flatten()
        image = network.step(point.detach(), injection)
        inner = torch.autograd.grad(image, parameters, adjoint.view(shape), allow_unused=True)
        flat = [
            sum((g for g in pair if g is not None), torch.zeros_like(p)).flatten()
            for p, *pair in zip(parameters, outer[1:], inner, strict=True)
        ]
        total = torch.cat(flat) if total is None else total + torch.cat(flat)
    assert total is not None
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


def slope(network: ImplicitNetwork, labels: Tensor, state: Callable[[], Tensor], along: Tensor, h: float = 1e-6) -> float:
    """The finite difference of the loss along a direction of the parameters, with the state that ``state`` returns there."""

    @torch.no_grad()
    def loss_at(distance: float) -> float:
        start = [p.clone() for p in network.parameters()]
        offset = 0
        for p in network.parameters():
            p += distance * along[offset : offset + p.numel()].view_as(p)
            offset += p.numel()
        loss = float(F.cross_entropy(network.readout(state()), labels))
        for p, before in zip(network.parameters(), start, strict=True):
            p.copy_(before)
        return loss

    return (loss_at(h) - loss_at(-h)) / (2 * h)


def somewhere(network: ImplicitNetwork) -> Tensor:
    return torch.randn(sum(p.numel() for p in network.parameters()), dtype=torch.float64, generator=torch.manual_seed(3))


def test_the_dense_gradient_is_the_finite_difference(case: tuple[ImplicitNetwork, Tensor, Tensor]) -> None:
    network, inputs, labels = case
    along = somewhere(network)
    expected = slope(network, labels, lambda: EXACT(network, network.inject(inputs)).fixed_point, along)
    assert float(dense_direction(network, inputs, labels) @ along) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_the_jfb_gradient_is_the_finite_difference_of_one_step_from_where_the_search_ended(
    case: tuple[ImplicitNetwork, Tensor, Tensor],
) -> None:
    network, inputs, labels = case
    along, loose = somewhere(network), Search(tolerance=1e-1)
    point = loose(network, network.inject(inputs)).fixed_point
    expected = slope(network, labels, lambda: network.step(point, network.inject(inputs)), along)
    assert float(direction(network, inputs, labels, JFB(), loose) @ along) == pytest.approx(expected, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("iterations", [1, 4])
def test_the_unrolled_and_the_explicit_gradient_are_the_finite_difference_of_that_many_layers(
    iterations: int, case: tuple[ImplicitNetwork, Tensor, Tensor]
) -> None:
    network, inputs, labels = case
    along = somewhere(network)

    def layers() -> Tensor:
        injection = network.inject(inputs)
        state = network.initial_state(injection)
        for _ in range(iterations):
            state = network.step(state, injection)
        return state

    expected = pytest.approx(slope(network, labels, layers, along), rel=1e-4, abs=1e-8)
    assert float(direction(network, inputs, labels, Unrolled(), Search(1e-14, iterations)) @ along) == expected
    if iterations == 1:
        assert float(direction(network, inputs, labels, Explicit()) @ along) == expected


@pytest.mark.parametrize("terms", [0, 1, 5])
def test_the_neumann_gradient_is_the_dense_series(terms: int, case: tuple[ImplicitNetwork, Tensor, Tensor]) -> None:
    found = direction(*case, Neumann(terms=terms))
    torch.testing.assert_close(found, dense_direction(*case, terms=terms), rtol=1e-8, atol=1e-10)


def test_the_jacobian_gradient_is_the_dense_one(case: tuple[ImplicitNetwork, Tensor, Tensor]) -> None:
    gradient = Jacobian(tolerance=1e-13, max_iterations=3000)
    found = direction(*case, gradient)
    torch.testing.assert_close(found, dense_direction(*case), rtol=1e-8, atol=1e-10)
    assert gradient.residual <= 1e-13
    assert gradient.iterations > 5


def test_unrolling_to_convergence_is_the_dense_gradient(case: tuple[ImplicitNetwork, Tensor, Tensor]) -> None:
    torch.testing.assert_close(direction(*case, Unrolled()), dense_direction(*case), rtol=1e-7, atol=1e-9)


def test_jfb_is_the_gradient_of_one_explicit_layer_at_the_fixed_point(case: tuple[ImplicitNetwork, Tensor, Tensor]) -> None:
    network, inputs, labels = case
    found = direction(network, inputs, labels, JFB())
    network.zero_grad()
    fixed_point = solve(network, network.inject(inputs), tolerance=1e-14, max_iterations=3000).fixed_point
    F.cross_entropy(network.readout(network.step(fixed_point, network.inject(inputs))), labels).backward()
    assert torch.equal(found, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tolerance", [1e-14, 1e-2, 1e-1])
@pytest.mark.parametrize("kind", list(NETWORKS))
def test_jfb_descends_also_at_an_approximate_fixed_point(kind: str, tolerance: float, seed: int) -> None:
    """Theorem 0.2 and Corollary 0.1."""
    network = NETWORKS[kind](seed=seed, contraction=0.6)
    inputs = torch.rand(4, *INPUTS[kind], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    search = Search(tolerance=tolerance, max_iterations=3000)
    found = direction(network, inputs, labels, JFB(), search)
    exact = dense_direction(network, inputs, labels)
    assert cosine(found, exact) > 0.1
    assert cosine(found, exact) < 1 - 1e-6, "identical directions would mean that the two were not computed apart"


def test_neumann_without_terms_is_jfb_to_the_last_bit(case: tuple[ImplicitNetwork, Tensor, Tensor]) -> None:
    assert torch.equal(direction(*case, Neumann(terms=0)), direction(*case, JFB()))


def test_the_neumann_gradient_tends_to_the_exact_one_at_the_contraction_rate(
    case: tuple[ImplicitNetwork, Tensor, Tensor],
) -> None:
    """Eq. 22: the error after k terms is at most ``γ^{k+1} / (1 − γ)`` times a constant."""
    exact = dense_direction(*case)
    bound = case[0].contraction_bound()
    assert bound is not None
    errors = {k: float((direction(*case, Neumann(terms=k)) - exact).norm()) for k in (0, 4, 8, 16)}
    assert errors[0] > errors[4] > errors[8] > errors[16]
    for k in (4, 8, 16):
        assert errors[k] <= errors[0] * bound**k / (1 - bound)


def test_the_explicit_network_is_one_application_from_the_start(case: tuple[ImplicitNetwork, Tensor, Tensor]) -> None:
    network, inputs, _ = case
    injection = network.inject(inputs)
    state, solution = Explicit()(network, injection, EXACT)
    assert torch.equal(state, network.step(network.initial_state(injection), injection))
    assert solution.iterations.tolist() == [1] * 4


@pytest.mark.parametrize("name", GRADIENTS)
def test_every_gradient_reaches_the_weights_of_all_three_maps(name: str) -> None:
    network = small_resnet()
    state, _ = GRADIENTS[name]()(network, network.inject(torch.rand(3, 1, 6, 6, dtype=torch.float64)), Search())
    network.readout(state).logsumexp(1).sum().backward()
    for parameter, p in network.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("kind", ["implicit_resnet", "implicit_mlp", "authors_resnet"])
def test_a_search_in_bfloat16_finds_a_float32_state_near_the_fixed_point(kind: str) -> None:
    torch.manual_seed(0)
    shape, classes = {"implicit_mlp": (6,)}.get(kind, (1, 12, 12)), 3
    network = build(kind, shape, classes, {"implicit_resnet": {"mean": 0.5, "std": 0.3}}.get(kind, {})).eval()
    inputs = torch.rand(5, *shape)
    in_float32 = Search(1e-2, 1000)(network, network.inject(inputs)).fixed_point
    state, solution = JFB()(network, network.inject(inputs), Search(1e-2, 1000, bfloat16=True))
    found = solution.fixed_point
    assert state.dtype == found.dtype == solution.residual.dtype == torch.float32
    assert set(solution.status) == {Status.CONVERGED}
    assert float((found - in_float32).norm() / in_float32.norm()) < 0.05, "further apart than roundings can bring it"
    assert not torch.equal(found, in_float32), "the search was not in bfloat16"
    assert torch.equal(state, network.step(found, network.inject(inputs))), "the last step was not in float32"


@pytest.mark.parametrize("name", GRADIENTS)
def test_rows_do_not_leak_into_each_other_in_training_either(name: str) -> None:
    """The gradient of one row's output with respect to another row's injection is zero."""
    network = small_resnet().train()
    injection = torch.randn(3, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    state, _ = GRADIENTS[name]()(network, injection, Search())
    (leak,) = torch.autograd.grad(state[0].sum(), injection)
    assert leak[0].abs().sum() > 0
    assert leak[1:].abs().sum() == 0
