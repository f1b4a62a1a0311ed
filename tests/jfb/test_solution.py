import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from jfb import ImplicitNetwork, ResidualNorm, Status, solve
from tests.emulated_gpu import GPU, emulated_gpu, waits
from tests.jfb.networks import Affine, affine, small_resnet


class Recording(Affine):
    """Counts the rows of each evaluation of ``step``."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.rows: list[int] = []

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        self.rows.append(len(state))
        return super().step(state, injection)


class Cube(ImplicitNetwork):
    """``u = u³ + q``: runs away from large injections, converges for small ones."""

    def inject(self, inputs: Tensor) -> Tensor:
        return inputs

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return state**3 + injection

    def readout(self, state: Tensor) -> Tensor:
        return state


def test_it_finds_the_fixed_point_of_an_affine_map() -> None:
    network = affine(0.7)
    injection = torch.randn(5, 4, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - network.matrix, injection.T).T
    solution = solve(network, injection, tolerance=1e-12, max_iterations=500, residual_norm=ResidualNorm.ABSOLUTE)
    assert solution.status == [Status.CONVERGED] * 5
    # Banach: the distance is at most γ / (1 − γ) times the last movement.
    assert (solution.fixed_point - exact).norm(dim=1).max() <= 0.7 / 0.3 * 1e-12 + 1e-14


def test_iterations_of_a_scalar_contraction_are_the_predicted_ones() -> None:
    # u_k = ½ u_{k−1} + 1 from 0 moves by ½^{k−1}, which is at or under 2^{−j} first at k = j + 1.
    network = Affine(torch.tensor([[0.5]], dtype=torch.float64))
    tolerance = torch.tensor([2.0**-j for j in range(1, 9)], dtype=torch.float64)
    solution = solve(
        network,
        torch.ones(8, 1, dtype=torch.float64),
        tolerance=tolerance,
        max_iterations=100,
        residual_norm=ResidualNorm.ABSOLUTE,
    )
    assert solution.iterations.tolist() == [j + 1 for j in range(1, 9)]
    assert solution.residual.tolist() == tolerance.tolist()


def test_no_row_is_iterated_for_another() -> None:
    network = Recording(torch.tensor([[0.5]], dtype=torch.float64))
    tolerance = torch.tensor([1e-1, 1e-9, 1e-3, 1e-1, 1e-6], dtype=torch.float64)
    solution = solve(network, torch.ones(5, 1, dtype=torch.float64), tolerance=tolerance, max_iterations=100)
    assert sum(network.rows) == solution.iterations.sum()
    assert network.rows == sorted(network.rows, reverse=True)


@pytest.mark.parametrize("norm", ResidualNorm)
def test_a_row_gets_the_same_answer_alone_and_in_a_batch(norm: ResidualNorm) -> None:
    network = small_resnet()
    inputs = torch.rand(40, 1, 6, 6, dtype=torch.float64)
    injection = network.inject(inputs)
    tolerance = torch.tensor([1e-1, 1e-8], dtype=torch.float64).repeat(20)
    caps = torch.tensor([100, 100, 100, 3], dtype=torch.int64).repeat(10)
    together = solve(network, injection, tolerance=tolerance, max_iterations=caps, residual_norm=norm)
    assert len(set(together.iterations.tolist())) > 3, "rows that all take equally long would prove nothing"
    for i in range(40):
        alone = solve(
            network, injection[i : i + 1], tolerance=tolerance[i].item(), max_iterations=int(caps[i]), residual_norm=norm
        )
        assert alone.iterations.item() == together.iterations[i].item()
        assert alone.status == [together.status[i]]
        torch.testing.assert_close(alone.fixed_point[0], together.fixed_point[i], rtol=0, atol=1e-12)


def test_a_cap_of_one_is_exactly_one_iteration() -> None:
    network = affine(0.9)
    injection = torch.randn(3, 4, dtype=torch.float64)
    solution = solve(network, injection, tolerance=1e-9, max_iterations=1)
    assert solution.iterations.tolist() == [1, 1, 1]
    assert solution.status == [Status.MAX_ITERATIONS] * 3
    torch.testing.assert_close(solution.fixed_point, injection)  # A · 0 + q


def test_a_row_that_converges_at_its_cap_has_converged() -> None:
    network = Affine(torch.tensor([[0.5]], dtype=torch.float64))
    solution = solve(
        network,
        torch.ones(1, 1, dtype=torch.float64),
        tolerance=2.0**-4,
        max_iterations=5,
        residual_norm=ResidualNorm.ABSOLUTE,
    )
    assert (solution.iterations.item(), solution.status) == (5, [Status.CONVERGED])


@pytest.mark.parametrize("norm", ResidualNorm)
def test_a_diverging_row_ends_alone(norm: ResidualNorm) -> None:
    injection = torch.tensor([[0.1], [5.0], [0.2]])
    solution = solve(Cube(), injection, tolerance=1e-6, max_iterations=200, residual_norm=norm)
    assert solution.status == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    assert solution.iterations[1] < 10
    alone = solve(Cube(), injection[[0, 2]], tolerance=1e-6, max_iterations=200, residual_norm=norm)
    assert torch.equal(alone.fixed_point, solution.fixed_point[[0, 2]])
    assert torch.equal(alone.iterations, solution.iterations[[0, 2]])


def test_tighter_means_more_iterations_and_nearer_to_the_limit() -> None:
    network = small_resnet()
    injection = network.inject(torch.rand(16, 1, 6, 6, dtype=torch.float64))
    limit = solve(network, injection, tolerance=1e-13, max_iterations=2000).fixed_point
    iterations, distances = [], []
    for tolerance in (1e-1, 1e-2, 1e-4, 1e-6, 1e-8):
        solution = solve(network, injection, tolerance=tolerance, max_iterations=2000)
        assert (solution.residual <= tolerance).all()
        iterations.append(solution.iterations)
        distances.append((solution.fixed_point - limit).flatten(1).norm(dim=1))
    for looser, tighter in pairwise(iterations):
        assert (looser <= tighter).all()
        assert looser.sum() < tighter.sum()
    for farther, nearer in pairwise(distances):
        assert (nearer <= farther).all()


def test_a_start_at_the_fixed_point_converges_at_once_and_is_left_as_it_was() -> None:
    network = affine(0.7)
    injection = torch.randn(2, 4, dtype=torch.float64)
    start = solve(network, injection, tolerance=1e-14, max_iterations=500).fixed_point
    before = start.clone()
    again = solve(network, injection, tolerance=1e-10, max_iterations=500, start=start)
    assert again.iterations.tolist() == [1, 1]
    assert torch.equal(start, before)


def test_neither_injection_nor_gradients_are_touched() -> None:
    network = affine(0.7)
    injection = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    before = injection.detach().clone()
    tolerance = torch.tensor([1e-1, 1e-9] * 3, dtype=torch.float64)
    solution = solve(network, injection, tolerance=tolerance, max_iterations=100)
    assert torch.equal(injection.detach(), before)
    assert not solution.fixed_point.requires_grad


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed"])
def test_the_host_waits_for_a_gpu_once_per_iteration(mixed: bool) -> None:
    with emulated_gpu():
        network = small_resnet(contraction=0.95).float().to(GPU)
        injection = network.inject(torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0)).to(GPU))
        low_precision = deepcopy(network).bfloat16() if mixed else None
        tolerance = torch.tensor([3e-1, 1e-1, 3e-2, 1e-2, 1e-6, 1e-6])
        counts, ended = [], []
        for most in (1, 21):
            waits.clear()
            found = solve(network, injection, tolerance=tolerance, max_iterations=most, low_precision=low_precision)
            counts.append(waits.total())
            ended.append(len(set(found.iterations.tolist())))
    assert ended[1] >= 3, "rows leave in some iterations, and in some none does"
    assert counts[1] - counts[0] == 20
    assert counts[0] <= 4, "of which one is that of the iteration"


def test_an_empty_batch_has_an_empty_solution() -> None:
    solution = solve(affine(), torch.empty(0, 4, dtype=torch.float64), tolerance=1e-3, max_iterations=5)
    assert solution.fixed_point.shape == (0, 4)
    assert solution.status == []


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan, math.inf])
def test_a_tolerance_that_is_not_positive_and_finite_is_rejected(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance: must be positive finite numbers"):
        solve(affine(), torch.ones(1, 4, dtype=torch.float64), tolerance=tolerance, max_iterations=5)


def test_a_cap_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"max_iterations: must be at least 1 \(got"):
        solve(affine(), torch.ones(1, 4, dtype=torch.float64), tolerance=1e-3, max_iterations=0)


def test_wrong_use_is_a_sentence_that_names_the_right_one() -> None:
    injection = torch.ones(1, 4, dtype=torch.float64)
    with pytest.raises(
        TypeError, match=r"network: must be an ImplicitNetwork \(got function\); jfb.fixed_point takes any function"
    ):
        solve(lambda state, injection: state, injection, tolerance=1e-3, max_iterations=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Affine has no single pass: call jfb.predict\(network, inputs, "):
        affine()(injection)
