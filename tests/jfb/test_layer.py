"""fixed_point(): closed forms, finite differences, and rows that do not depend on each other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jfb
from jfb.gradients import GRADIENTS, Jacobian, Neumann
from jfb.status import Status
from tests.jfb.networks import small_monotone_mlp, small_resnet

EXACT: dict[str, Any] = {"tolerance": 1e-13, "max_iterations": 2000}


def contraction(size: int = 4, factor: float = 0.7) -> Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return factor * matrix / torch.linalg.matrix_norm(matrix, 2)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_the_fixed_point_of_an_affine_function_and_its_gradient_are_the_closed_forms(solver: str) -> None:
    matrix, q, weights = contraction().requires_grad_(), random(5, 4).requires_grad_(), random(5, 4, seed=2)
    state, solution = jfb.fixed_point(
        lambda u: u @ matrix.T + q, torch.zeros(5, 4, dtype=torch.float64), gradient=Jacobian(1e-13, 2000), solver=solver, **EXACT
    )
    exact = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - matrix, q.T).T
    torch.testing.assert_close(state, exact)
    assert solution.status == [Status.CONVERGED] * 5
    found = torch.autograd.grad((state * weights).sum(), [matrix, q])
    torch.testing.assert_close(found, torch.autograd.grad((exact * weights).sum(), [matrix, q]))


def test_each_gradient_is_what_its_formula_says() -> None:
    """For ``u = A u + q``: dq is ``w``, with ``w = (I − Aᵀ)⁻¹ g``, or g, or a partial sum of its Neumann series."""
    matrix, q, g = contraction(), random(3, 4).requires_grad_(), random(3, 4, seed=2)
    start = torch.zeros(3, 4, dtype=torch.float64)
    identity = torch.eye(4, dtype=torch.float64)
    series = sum((torch.linalg.matrix_power(matrix, k) for k in range(1, 6)), identity)
    exact = torch.linalg.inv(identity - matrix)
    expected = {"jfb": g, "explicit": g, "neumann": g @ series, "jacobian": g @ exact, "unrolled": g @ exact}
    assert expected.keys() == GRADIENTS.keys()
    for name, value in expected.items():
        state, _ = jfb.fixed_point(lambda u: u @ matrix.T + q, start, gradient=name, **EXACT)
        (found,) = torch.autograd.grad((state * g).sum(), [q])
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6, msg=name)


def scales(weight: Tensor, q: Tensor) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A multi-scale function: fine and coarse images, and a number per row, each of which depends on the others."""

    def function(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        fine, coarse, number = state
        pooled = nn.functional.avg_pool2d(fine, 2)
        wider = nn.functional.interpolate(coarse, scale_factor=2)
        return (
            torch.tanh(weight[0] * fine + weight[1] * wider + q),
            torch.tanh(weight[2] * coarse + weight[3] * pooled) + 0.1 * number.view(-1, 1, 1, 1),
            0.3 * torch.sin(coarse.mean((1, 2, 3))),
        )

    return function


@pytest.mark.parametrize("gradient", [Jacobian(1e-13, 2000), "unrolled", Neumann(60)], ids=["jacobian", "unrolled", "neumann"])
def test_the_gradient_of_a_multi_scale_state_is_that_of_finite_differences(gradient: "str | jfb.gradients.Gradient") -> None:
    start = tuple(torch.zeros(shape, dtype=torch.float64) for shape in ((3, 2, 4, 4), (3, 2, 2, 2), (3,)))

    def loss(weight: Tensor, q: Tensor) -> Tensor:
        (fine, coarse, number), _ = jfb.fixed_point(scales(weight, q), start, gradient=gradient, **EXACT)
        return fine.square().sum() + coarse.sum() * number.sum()

    weight = torch.tensor([0.3, 0.2, 0.25, 0.3], dtype=torch.float64, requires_grad=True)
    q = random(3, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(loss, (weight, q), eps=1e-5, atol=1e-5, fast_mode=True, check_undefined_grad=False)


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_a_row_is_the_same_alone_and_in_a_batch_of_which_the_function_uses_other_tensors(solver: str) -> None:
    weight, q = (
        torch.tensor([0.5, 0.3, 0.4, 0.4], dtype=torch.float64),
        random(6, 2, 4, 4) * torch.logspace(-3, 1, 6).view(-1, 1, 1, 1),
    )
    shapes = ((2, 4, 4), (2, 2, 2), ())

    def solve(rows: Tensor) -> tuple[tuple[Tensor, ...], jfb.Solution]:
        start = tuple(torch.zeros(len(rows), *shape, dtype=torch.float64) for shape in shapes)
        return jfb.fixed_point(scales(weight, rows), start, tolerance=1e-6, max_iterations=60, solver=solver)

    together, solution = solve(q)
    assert len(set(solution.iterations.tolist())) > 2, "rows that all take equally long would prove nothing"
    for i in range(6):
        alone, of_row = solve(q[i : i + 1])
        assert of_row.iterations.item() == solution.iterations[i].item()
        assert of_row.status == [solution.status[i]]
        for one, of_batch in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], of_batch[i], rtol=0, atol=1e-12)


def test_a_diverging_row_ends_alone_and_the_functions_own_tensors_are_untouched() -> None:
    q = torch.tensor([[0.1], [5.0], [0.2]])
    before = q.clone()
    state, solution = jfb.fixed_point(lambda u: u**3 + q, q)
    assert solution.status == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    assert state[[0, 2]].isfinite().all()
    constant, solution = jfb.fixed_point(lambda u: q, q + torch.tensor([[0.0], [1.0], [0.0]]))
    assert torch.equal(constant, q)
    assert solution.iterations.tolist() == [1, 2, 1]
    assert torch.equal(q, before)


def test_a_layer_in_a_module_trains_with_autocast() -> None:
    torch.manual_seed(0)
    cell, inputs = nn.Linear(8, 8), torch.randn(16, 8)
    with torch.no_grad():
        cell.weight.mul_(0.5 / torch.linalg.matrix_norm(cell.weight, 2))
    with torch.autocast("cpu", torch.bfloat16):
        state, _ = jfb.fixed_point(lambda u: torch.tanh(cell(u) + inputs), torch.zeros(16, 8), tolerance=1e-2)
    assert state.dtype == torch.float32
    state.square().mean().backward()
    assert cell.weight.grad is not None
    assert cell.weight.grad.abs().sum() > 0


def test_an_empty_batch_has_an_empty_state() -> None:
    state, solution = jfb.fixed_point(lambda u: 0.5 * u, torch.zeros(0, 3))
    assert state.shape == (0, 3)
    assert solution.status == []


def test_wrong_use_is_a_sentence() -> None:
    start = torch.zeros(2, 3)
    wrong: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, r"gradient: must be one of jfb, neumann, .* \(got 'jbf'; did you mean 'jfb'\?\)",
         lambda: jfb.fixed_point(lambda u: u, start, gradient="jbf")),
        (ValueError, r"solver: must be one of picard, anderson \(got 'broyden'\)",
         lambda: jfb.fixed_point(lambda u: u, start, solver="broyden")),
        (ValueError, r"start: must be tensors \[n, ...\] of one n, floating-point .* \(got \[2, 3\] torch.float32 cpu, \[3\]",
         lambda: jfb.fixed_point(lambda u: u, (start, torch.zeros(3)))),
        (ValueError, r"start: must be tensors .* floating-point type .* \(got \[2, 3\] torch.int64 cpu\)",
         lambda: jfb.fixed_point(lambda u: u, start.long())),
        (TypeError, r"start: must be a tensor or a tuple of tensors \(got float\)",
         lambda: jfb.fixed_point(lambda u: u, 0.0)),  # type: ignore[type-var]
        (ValueError, r"function's result: must have shape \[2, 3\], like start \(got \[2\]\)",
         lambda: jfb.fixed_point(lambda u: u.sum(1), start)),
        (TypeError, r"function's result: must be a tensor, like start \(got tuple\)",
         lambda: jfb.fixed_point(lambda u: (u,), start)),  # type: ignore[arg-type,return-value]
        (TypeError, r"function's result: must be a tuple of 2 tensors, like start \(got tuple of 1\)",
         lambda: jfb.fixed_point(lambda u: u[:1], (start, start))),
        (TypeError, r"injection: must be given for an ImplicitNetwork, in place of start \(got ImplicitResNet\)",
         lambda: jfb.fixed_point(small_resnet(), start)),
        (ValueError, r"max_iterations: must be at least 1", lambda: jfb.fixed_point(lambda u: u, start, max_iterations=0)),
    ]  # fmt: skip
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message):
            call()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_network_is_iterated_by_its_step_and_its_gradient_is_that_of_its_step_as_a_function(gradient: str) -> None:
    network = small_resnet()
    inputs = torch.rand(4, 1, 6, 6, dtype=torch.float64)

    def found(as_function: bool) -> list[Tensor]:
        injection = network.inject(inputs)
        settings: Any = EXACT | {"gradient": gradient}
        if as_function:
            start = network.initial_state(injection)
            state, solution = jfb.fixed_point(lambda u: network.step(u, injection), start, **settings)
        else:
            state, solution = jfb.fixed_point(network, injection=injection, **settings)
        used = [one for one in network.parameters() if one.requires_grad]
        gradients = torch.autograd.grad(state.square().sum(), used, allow_unused=True)
        return [state, solution.iterations.double(), *(one for one in gradients if one is not None)]

    expected = found(True)
    assert len(expected) > 4, "gradients reach the injection and the step"
    torch.testing.assert_close(found(False), expected)


def test_a_network_takes_a_splitting_solver_by_name() -> None:
    network = small_monotone_mlp()
    injection = network.inject(torch.rand(3, 5, dtype=torch.float64))
    picard, _ = jfb.fixed_point(network, injection=injection, **EXACT)
    split, _ = jfb.fixed_point(network, injection=injection, solver="peaceman_rachford", **EXACT)
    torch.testing.assert_close(split, picard, rtol=1e-6, atol=1e-8)
