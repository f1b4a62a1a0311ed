import pytest
import torch

from jfb import ResidualNorm, Status, solve
from jfb.solvers import Anderson
from jfb.solvers.anderson import SKETCH, stride
from tests.jfb.networks import Affine, affine, small_mlp, small_resnet
from tests.jfb.test_solution import Cube


def test_on_a_linear_map_it_ends_after_as_many_steps_as_there_are_dimensions() -> None:
    """Anderson with a full window is GMRES on ``(I − A) u = q`` (Walker and Ni, 2011)."""
    network = affine(0.99, size=4)
    injection = torch.randn(3, 4, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - network.matrix, injection.T).T
    solver = Anderson(window=6, regularisation=1e-15)
    found = solve(network, injection, tolerance=1e-6, max_iterations=50, solver=solver)
    plain = solve(network, injection, tolerance=1e-6, max_iterations=5000)
    torch.testing.assert_close(found.fixed_point, exact, rtol=1e-4, atol=1e-5)
    assert found.iterations.max() <= 7  # dimension + 1 steps, and one to see that it does not move any more
    assert plain.iterations.min() > 20


@pytest.mark.parametrize("network", [small_resnet(), small_mlp()], ids=["resnet", "mlp"])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6, 1e-10])
def test_it_reaches_the_same_point_and_is_never_worse_than_picard_by_more_than_two(
    network: torch.nn.Module, tolerance: float
) -> None:
    inputs = torch.rand(64, *((1, 6, 6) if hasattr(network, "stem") else (5,)), dtype=torch.float64)
    injection = network.inject(inputs)
    plain = solve(network, injection, tolerance=tolerance, max_iterations=1000)
    faster = solve(network, injection, tolerance=tolerance, max_iterations=1000, solver=Anderson())
    assert faster.status == [Status.CONVERGED] * 64
    assert (faster.iterations - plain.iterations).max() <= 2
    assert (faster.residual <= tolerance).all()
    if tolerance <= 1e-6:
        torch.testing.assert_close(faster.fixed_point, plain.fixed_point, rtol=0, atol=100 * tolerance)


def test_rows_have_their_own_history() -> None:
    network = small_resnet()
    injection = network.inject(torch.rand(24, 1, 6, 6, dtype=torch.float64))
    tolerance = torch.tensor([1e-2, 1e-9], dtype=torch.float64).repeat(12)
    together = solve(network, injection, tolerance=tolerance, max_iterations=1000, solver=Anderson())
    for i in range(24):
        alone = solve(network, injection[i : i + 1], tolerance=tolerance[i].item(), max_iterations=1000, solver=Anderson())
        assert alone.iterations.item() == together.iterations[i].item()
        torch.testing.assert_close(alone.fixed_point[0], together.fixed_point[i], rtol=0, atol=1e-9)


def test_a_map_that_turns_is_still_solved() -> None:
    """Rotation by 90° with factor 0.95: the residual spirals, which is where acceleration without a safeguard gets lost."""
    network = Affine(0.95 * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))
    injection = torch.randn(8, 2, dtype=torch.float64)
    found = solve(network, injection, tolerance=1e-8, max_iterations=500, solver=Anderson())
    assert found.status == [Status.CONVERGED] * 8
    assert found.iterations.max() < 30


def test_a_diverging_row_ends_alone() -> None:
    injection = torch.tensor([[0.1], [5.0], [0.2]], dtype=torch.float64)
    found = solve(Cube(), injection, tolerance=1e-9, max_iterations=200, residual_norm=ResidualNorm.ABSOLUTE, solver=Anderson())
    assert found.status[0] is found.status[2] is Status.CONVERGED
    alone = solve(
        Cube(),
        injection[[0, 2]],
        tolerance=1e-9,
        max_iterations=200,
        residual_norm=ResidualNorm.ABSOLUTE,
        solver=Anderson(),
    )
    assert torch.equal(alone.iterations, found.iterations[[0, 2]])


@pytest.mark.parametrize(("arguments", "message"), [({"window": 1}, "window"), ({"regularisation": 0.0}, "regularisation")])
def test_options_out_of_range_are_rejected(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Anderson(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 4, 255, 256, 512, 513, 2592, 4096, 65536, 3 * 5 * 7 * 11 * 13])
def test_entries_are_checked_everywhere_in_a_state(size: int) -> None:
    step = stride(size)
    looked_at = -(-size // step)
    assert looked_at >= min(size, SKETCH)
    assert all(step % divisor for divisor in range(2, step + 1) if size % divisor == 0), "it would keep to some column"


@pytest.mark.parametrize("contiguous", [True, False])
def test_a_large_state_is_solved_by_a_part_of_its_entries_in_as_few_iterations(contiguous: bool) -> None:
    """An affine map of 32 channels at 9 by 9 positions, each with its own rate of up to 0.95, in any memory format."""
    rates = 0.95 * torch.rand(1, 32, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Rates(Affine):
        def __init__(self) -> None:
            super().__init__(torch.zeros(1))

        def step(self, state: torch.Tensor, injection: torch.Tensor) -> torch.Tensor:
            return rates * state + injection

    injection = torch.randn(6, 32, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layout = torch.contiguous_format if contiguous else torch.channels_last
    injection = injection.contiguous(memory_format=layout)
    assert stride(rates.numel()) > 1
    found = solve(Rates(), injection, tolerance=1e-6, max_iterations=1000, solver=Anderson())
    plain = solve(Rates(), injection, tolerance=1e-6, max_iterations=1000)
    assert found.iterations.max() < 0.5 * plain.iterations.min()
    torch.testing.assert_close(found.fixed_point, injection / (1 - rates), rtol=1e-3, atol=1e-3)


def test_the_weights_do_not_depend_on_how_states_lie_in_memory() -> None:
    """The sampled entries are chosen by their place in the state: by their place in memory, backends would differ in counts."""
    torch.manual_seed(0)
    solver, memories, proposals = Anderson(), [], []
    layouts = torch.contiguous_format, torch.channels_last
    state = torch.randn(4, 16, 9, 9)
    assert stride(state[0].numel()) > 1
    for layout in layouts:
        memories.append(solver.start(state.contiguous(memory_format=layout)))
    for _ in range(6):
        next_state = torch.tanh(state) + 0.1 * torch.randn_like(state)
        proposals = [
            solver.propose(memory, state.contiguous(memory_format=layout), next_state.contiguous(memory_format=layout))
            for memory, layout in zip(memories, layouts, strict=True)
        ]
        torch.testing.assert_close(memories[0]["gram"], memories[1]["gram"], rtol=0, atol=0)
        torch.testing.assert_close(*proposals, rtol=1e-6, atol=1e-6)
        state = proposals[0]


@torch.no_grad()
def test_pytorch_computes_on_an_accelerator_what_numpy_computes_on_the_host() -> None:
    network, solver = affine(0.99, size=6), Anderson()
    injection = torch.randn(5, 6, dtype=torch.float64)
    state = torch.zeros_like(injection)
    on_host, on_accelerator = solver.start(state), solver.start(state)
    for _ in range(12):
        next_state = network.step(state, injection)
        following = solver.propose(on_host, state, next_state)
        torch.testing.assert_close(
            solver._combine(torch, on_accelerator, next_state, state, torch.arange(6)), following, rtol=1e-6, atol=1e-6
        )
        state = following


def test_what_cannot_be_combined_costs_a_plain_step_and_affects_no_other_row() -> None:
    """A row that does not move at all has a Gram matrix of zeros; one whose next_state is not finite has one of NaN."""
    state = torch.randn(3, 4, dtype=torch.float64)
    next_state = state + torch.tensor([[0.0], [torch.inf], [0.5]], dtype=torch.float64)
    solver = Anderson()
    alone, together = solver.start(state[2:]), solver.start(state)
    for _ in range(3):
        own = solver.propose(alone, state[2:], next_state[2:])
        following = solver.propose(together, state, next_state)
    torch.testing.assert_close(following[0], next_state[0])
    assert not following[1].isfinite().any()
    torch.testing.assert_close(following[2:], own, rtol=0, atol=0)
