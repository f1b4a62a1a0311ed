"""Forward-backward and Peaceman-Rachford splitting, on dense and on convolutional monotone networks."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from jfb import ResidualNorm, Status, solve
from jfb.monotone_network import MonotoneNetwork
from jfb.network import ImplicitNetwork
from jfb.solvers import SOLVERS, Anderson, ForwardBackward, PeacemanRachford, Picard, Solver, solvers_for
from tests.jfb.networks import small_mlp, small_monotone_conv, small_monotone_mlp

NETWORKS = {"mlp": small_monotone_mlp(), "conv": small_monotone_conv(), "odd sides": small_monotone_conv(sides=(10, 7))}
SPLITTINGS: dict[str, Solver] = {"forward_backward": ForwardBackward(), "peaceman_rachford": PeacemanRachford()}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> MonotoneNetwork:
    return NETWORKS[request.param]


def injections(network: MonotoneNetwork, rows: int, seed: int = 0) -> Tensor:
    """Random injections of very different sizes."""
    inputs = torch.zeros(1, 5, dtype=torch.float64)
    if hasattr(network, "stem"):
        height, width = network._sides
        inputs = torch.zeros(1, 1, 2 * height, 2 * width, dtype=torch.float64)
    one = network.inject(inputs)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 1, rows, dtype=torch.float64).view(-1, *[1] * (one.dim() - 1))
    return scale * torch.randn(rows, *one.shape[1:], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("solver", SPLITTINGS.values(), ids=list(SPLITTINGS))
def test_every_start_leads_to_the_one_solution_of_the_equation(network: MonotoneNetwork, solver: Solver) -> None:
    injection = injections(network, 3)
    found = []
    for seed in range(5):
        start = 10 * torch.randn(injection.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        solution = solve(network, injection, tolerance=1e-13, max_iterations=5000, solver=solver, start=start)
        assert solution.status == [Status.CONVERGED] * 3
        equation = torch.relu(network.linear(solution.fixed_point) + injection)
        torch.testing.assert_close(solution.fixed_point, equation, rtol=0, atol=1e-9)
        found.append(solution.fixed_point)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-9)


def test_both_splittings_plain_and_accelerated_iteration_agree(network: MonotoneNetwork) -> None:
    injection = injections(network, 8)
    reference = solve(network, injection, tolerance=1e-13, max_iterations=5000).fixed_point
    solvers = [ForwardBackward(), ForwardBackward(alpha=0.05), PeacemanRachford(), PeacemanRachford(alpha=2.0), Anderson()]
    for solver in solvers:
        found = solve(network, injection, tolerance=1e-12, max_iterations=5000, solver=solver)
        assert found.status == [Status.CONVERGED] * 8
        torch.testing.assert_close(found.fixed_point, reference, rtol=0, atol=1e-8)


def test_without_a_step_size_forward_backward_is_picard_of_the_networks_step(network: MonotoneNetwork) -> None:
    injection = injections(network, 4)
    plain = solve(network, injection, tolerance=1e-6, max_iterations=500, solver=Picard())
    split = solve(network, injection, tolerance=1e-6, max_iterations=500, solver=ForwardBackward())
    assert torch.equal(plain.fixed_point, split.fixed_point)
    assert torch.equal(plain.iterations, split.iterations)


def test_forward_backward_contracts_where_the_equation_itself_does_not_converge() -> None:
    network = small_monotone_mlp(scale=6.0)
    injection = injections(network, 4)
    state = torch.zeros_like(injection)
    for _ in range(500):
        previous, state = state, torch.relu(network.linear(state) + injection)
    assert bool(((state - previous).norm(dim=1) > 0.1 * previous.norm(dim=1)).all()), "u = φ(W u + q), iterated, never settles"
    solution = solve(network, injection, tolerance=1e-8, max_iterations=20_000)
    assert solution.status == [Status.CONVERGED] * 4


def test_peaceman_rachford_needs_fewer_iterations(network: MonotoneNetwork) -> None:
    injection = injections(network, 8)
    forward = solve(network, injection, tolerance=1e-6, max_iterations=5000, solver=ForwardBackward())
    reflected = solve(network, injection, tolerance=1e-6, max_iterations=5000, solver=PeacemanRachford())
    assert reflected.iterations.sum() < 0.7 * forward.iterations.sum()


@pytest.mark.parametrize("norm", ResidualNorm)
@pytest.mark.parametrize("solver", SPLITTINGS.values(), ids=list(SPLITTINGS))
def test_a_row_gets_the_same_answer_alone_and_in_a_batch(network: MonotoneNetwork, solver: Solver, norm: ResidualNorm) -> None:
    injection = injections(network, 12)
    tolerance = torch.tensor([1e-1, 1e-9, 1e-4], dtype=torch.float64).repeat(4)
    caps = torch.tensor([1000, 1000, 1000, 1000, 1000, 2]).repeat(2)
    together = solve(network, injection, tolerance=tolerance, max_iterations=caps, residual_norm=norm, solver=solver)
    assert len(set(together.iterations.tolist())) > 3, "rows that all take equally long would prove nothing"
    for i in range(12):
        alone = solve(
            network,
            injection[i : i + 1],
            tolerance=tolerance[i].item(),
            max_iterations=int(caps[i]),
            residual_norm=norm,
            solver=solver,
        )
        assert alone.iterations.item() == together.iterations[i].item()
        assert alone.status == [together.status[i]]
        torch.testing.assert_close(alone.fixed_point[0], together.fixed_point[i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", SPLITTINGS.values(), ids=list(SPLITTINGS))
def test_a_start_at_the_fixed_point_converges_at_once(network: MonotoneNetwork, solver: Solver) -> None:
    injection = injections(network, 4)
    start = solve(network, injection, tolerance=1e-14, max_iterations=5000).fixed_point
    again = solve(network, injection, tolerance=1e-8, max_iterations=100, solver=solver, start=start)
    assert again.iterations.tolist() == [1] * 4


def test_rows_that_join_later_are_solved_as_if_they_had_started_together(network: MonotoneNetwork) -> None:
    """As the engine drives it: memories of old and new rows are joined between iterations."""
    solver = PeacemanRachford()
    injection = injections(network, 6)
    point = network.initial_state(injection)

    def iterate(rows: slice, times: int) -> Tensor:
        u, memory = point[rows], solver.start(point[rows])
        for _ in range(times):
            u = solver.evaluate(network, memory, u, injection[rows])
        return u

    old = slice(0, 3)
    u, memory = point[old], solver.start(point[old])
    for _ in range(4):
        u = solver.evaluate(network, memory, u, injection[old])
    u = torch.cat([u, point[3:]])
    memory = {name: torch.cat([memory[name], part]) for name, part in solver.start(point[3:]).items()}
    for _ in range(2):
        u = solver.evaluate(network, memory, u, injection)
    torch.testing.assert_close(u, torch.cat([iterate(old, 6), iterate(slice(3, 6), 2)]), rtol=0, atol=1e-12)


def test_the_inverse_follows_the_weights() -> None:
    network = small_monotone_conv(seed=3)
    injection = injections(network, 2)
    solver = PeacemanRachford()

    def agree() -> None:
        found = solve(network, injection, tolerance=1e-12, max_iterations=5000, solver=solver).fixed_point
        plain = solve(network, injection, tolerance=1e-13, max_iterations=5000).fixed_point
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-8)

    agree()
    with torch.no_grad():
        network.B.add_(0.1 * torch.randn_like(network.B))
    network.constrain()
    agree()
    network.load_state_dict(small_monotone_conv(seed=4).state_dict(), assign=True)
    agree()


@pytest.mark.parametrize("solver", SPLITTINGS.values(), ids=list(SPLITTINGS))
def test_a_network_without_the_parts_is_rejected(solver: Solver) -> None:
    network = small_mlp()
    with pytest.raises(ValueError, match=r"network: must be a MonotoneNetwork for .* \(got ImplicitMLP\)"):
        solve(network, torch.randn(2, 6, dtype=torch.float64), tolerance=1e-3, max_iterations=5, solver=solver)


def test_every_solver_solves_a_monotone_network_and_those_that_split_nothing_solve_any() -> None:
    assert solvers_for(MonotoneNetwork) == [name for name, solver in SOLVERS.items() if not solver.learned]
    assert solvers_for(ImplicitNetwork) == ["picard", "anderson"]


@pytest.mark.parametrize("kind", [ForwardBackward, PeacemanRachford])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_a_step_size_out_of_range_is_rejected(kind: type[ForwardBackward | PeacemanRachford], alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha: must be a positive number"):
        kind(alpha=alpha)
