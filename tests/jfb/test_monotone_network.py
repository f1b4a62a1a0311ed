"""Monotone operator networks: their guarantees for any weights, their gradients, and their storage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb import CheckpointError, ModelConfig, load, predict, solve
from jfb.architectures import build
from jfb.checkpoint import save
from jfb.gradients import JFB, Jacobian, Unrolled
from jfb.monotone_network import MonotoneNetwork
from jfb.solvers import PeacemanRachford
from jfb.store import new_version
from tests.jfb.gradients.test_gradients import EXACT, cosine, dense_direction, direction
from tests.jfb.networks import small_monotone_conv, small_monotone_mlp

NETWORKS = {"mlp": small_monotone_mlp, "conv": small_monotone_conv}
INPUTS = {"mlp": (5,), "conv": (1, 6, 8)}
STATES = {"mlp": (6,), "conv": (4, 3, 4)}
KINDS = pytest.mark.parametrize("kind", list(NETWORKS))


def batch(kind: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(4, *INPUTS[kind], generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


def written_out(network: MonotoneNetwork, kind: str) -> Tensor:
    """W as one matrix, a column a latent entry."""
    size = int(np.prod(STATES[kind]))
    return network.linear(torch.eye(size, dtype=torch.float64).view(size, *STATES[kind])).flatten(1).T.detach()


@KINDS
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("monotonicity", "scale"), [(1.0, 0.5), (1.0, 4.0), (0.1, 1.0), (2.5, 3.0)])
def test_monotone_with_constant_m_and_a_contraction_whatever_the_weights(
    kind: str, seed: int, monotonicity: float, scale: float
) -> None:
    network = NETWORKS[kind](seed=seed, monotonicity=monotonicity, scale=scale)
    w = written_out(network, kind)
    identity = torch.eye(len(w), dtype=torch.float64)
    smallest = torch.linalg.eigvalsh((2 * identity - w - w.T) / 2)[0]
    assert smallest >= monotonicity - 1e-9
    alpha = float(network.alpha())
    norm = float(torch.linalg.matrix_norm((1 - alpha) * identity + alpha * w, 2))
    assert network.contraction_bound() == pytest.approx(norm, rel=1e-9)
    p, s = float(network.symmetric_norm), float(network.skew_norm)
    promised = ((1 - alpha * monotonicity) ** 2 + alpha**2 * s * (s + p)) ** 0.5
    assert norm <= promised + 1e-9
    assert promised < 1


@KINDS
def test_the_resolvent_is_the_inverse_and_the_matrices_are_w(kind: str) -> None:
    network = NETWORKS[kind]()
    state = torch.randn(3, *STATES[kind], dtype=torch.float64)
    torch.testing.assert_close(network.multiply(network.matrices(), state), network.linear(state), rtol=0, atol=1e-12)
    for alpha in (0.3, 2.0, 0.3):
        found = network.resolvent(state, alpha)
        torch.testing.assert_close(found + alpha * (found - network.linear(found)), state, rtol=0, atol=1e-12)


@KINDS
def test_averaged_weights_keep_the_guarantee(kind: str) -> None:
    """The bounds that α is chosen by are convex in the weights, so their averages bound the averaged weights."""
    average, one, two = (NETWORKS[kind](seed=seed, scale=scale) for seed, scale in ((0, 1.0), (1, 0.3), (2, 5.0)))
    mixed = {name: 0.4 * tensor + 0.6 * two.state_dict()[name] for name, tensor in one.state_dict().items()}
    average.load_state_dict(mixed)  # as AveragedModel does, buffers too
    kept = float(average.alpha())
    assert average.contraction_bound() < 1
    average.constrain()
    assert kept <= float(average.alpha()) + 1e-9


@KINDS
def test_the_exact_gradient_is_the_finite_difference(kind: str) -> None:
    network, (inputs, labels) = NETWORKS[kind](), batch(kind)
    exact = direction(network, inputs, labels, Jacobian(tolerance=1e-13, max_iterations=3000))
    torch.testing.assert_close(exact, dense_direction(network, inputs, labels), rtol=1e-7, atol=1e-9)
    generator = torch.Generator().manual_seed(5)
    along = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    weights = nn.utils.parameters_to_vector(network.parameters()).detach()

    def loss_at(distance: float) -> float:
        nn.utils.vector_to_parameters(weights + distance * along, network.parameters())
        network.constrain()  # another α: the fixed points do not depend on it
        with torch.no_grad():
            state = EXACT(network, network.inject(inputs)).fixed_point
            return float(F.cross_entropy(network.readout(state), labels))

    h = 1e-6
    assert float(exact @ along) == pytest.approx((loss_at(h) - loss_at(-h)) / (2 * h), rel=1e-4, abs=1e-8)


@KINDS
def test_the_exact_gradient_does_not_depend_on_the_splitting_that_found_the_fixed_point(kind: str) -> None:
    network, (inputs, labels) = NETWORKS[kind](), batch(kind)
    gradient = Jacobian(tolerance=1e-12, max_iterations=3000)
    forward = direction(network, inputs, labels, gradient)
    search = type(EXACT)(tolerance=1e-13, max_iterations=3000, solver=PeacemanRachford())
    torch.testing.assert_close(direction(network, inputs, labels, gradient, search), forward, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(direction(network, inputs, labels, Unrolled()), forward, rtol=1e-6, atol=1e-9)


@KINDS
def test_jfb_descends(kind: str) -> None:
    for seed in range(4):
        network, (inputs, labels) = NETWORKS[kind](seed=seed, scale=1.0), batch(kind, seed)
        assert 0.3 < cosine(direction(network, inputs, labels, JFB()), dense_direction(network, inputs, labels)) < 1 - 1e-6


def config(name: str, shape: tuple[int, ...], solver: str, **arguments: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "architecture": {"name": name, "arguments": arguments},
            "input": {"shape": shape, "kind": "vector"},
            "classes": ["a", "b", "c"],
            "serving": {"solver": solver},
        }
    )


@pytest.mark.parametrize("solver", ["forward_backward", "peaceman_rachford"])
def test_a_loaded_network_answers_as_the_one_that_was_saved(tmp_path: Path, solver: str) -> None:
    described = config("monotone_mlp", (5,), solver, width=6)
    torch.manual_seed(0)
    network = build("monotone_mlp", (5,), 3, {"width": 6}).eval()
    assert isinstance(network, MonotoneNetwork)
    with torch.no_grad():
        network.B.mul_(4)
    network.constrain()
    with new_version(tmp_path, "split") as folder:
        save(folder, described, network)
    loaded = load(tmp_path / "split" / "1")
    inputs = torch.randn(6, 5)
    solvers = [PeacemanRachford() if solver == "peaceman_rachford" else None for _ in range(2)]
    before = predict(network, inputs, tolerance=1e-4, max_iterations=200, solver=solvers[0])
    after = predict(loaded.network, inputs, tolerance=1e-4, max_iterations=200, solver=solvers[1])
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.solution.iterations, after.solution.iterations)


def test_a_solver_that_cannot_solve_the_architecture_is_rejected_when_saved_and_when_loaded(tmp_path: Path) -> None:
    network = build("implicit_mlp", (5,), 3, {"width": 6})
    with pytest.raises(
        CheckpointError, match=r"serving\.solver: must be one of picard, anderson for 'implicit_mlp' \(got 'peaceman_rachford'"
    ):
        save(tmp_path, config("implicit_mlp", (5,), "peaceman_rachford", width=6), network)
    assert not list(tmp_path.iterdir())
    with new_version(tmp_path, "whole") as folder:
        save(folder, config("implicit_mlp", (5,), "anderson", width=6), network)
    path = tmp_path / "whole" / "1" / "config.json"
    path.write_text(path.read_text().replace('"anderson"', '"forward_backward"'))
    with pytest.raises(CheckpointError, match=r"config\.json: serving\.solver: must be one of .*'forward_backward'"):
        load(tmp_path / "whole" / "1")


@pytest.mark.parametrize("name", ["neural_ode", "augmented_neural_ode"])
def test_a_neural_ode_is_not_served_and_says_so(tmp_path: Path, name: str) -> None:
    fine = config("implicit_mlp", (5,), "picard", width=6)
    with new_version(tmp_path, "flow") as folder:
        save(folder, fine, build("implicit_mlp", (5,), 3, {"width": 6}))
    path = tmp_path / "flow" / "1" / "config.json"
    path.write_text(path.read_text().replace('"implicit_mlp"', f'"{name}"'))
    with pytest.raises(CheckpointError, match=rf"'{name}' is not served: it follows a differential equation"):
        load(tmp_path / "flow" / "1")


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "message"),
    [
        ("monotone_mlp", (5,), {"monotonicity": 0.0}, r"monotonicity: must be a positive number \(got 0"),
        ("monotone_mlp", (1, 5, 5), {}, r"input.shape: must be \[features\] for monotone_mlp"),
        ("monotone_mlp", (5,), {"slope": 2.0}, r"slope: must be a number in \[0, 1\]"),
        ("monotone_conv", (5,), {}, r"input.shape: must be \[channels, height, width\] for monotone_conv"),
        ("monotone_conv", (1, 8, 4), {"pool": [2]}, r"pool: must leave at least 3x3 of an image .*got \[2\], which leaves 4x2"),
    ],
)
def test_arguments_out_of_range_are_rejected(name: str, shape: tuple[int, ...], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, shape, 3, arguments)


def test_solve_finds_what_the_linear_system_gives_where_nothing_is_cut_off() -> None:
    """With an injection so large that u > 0, φ is the identity there and u = (I − W)⁻¹ q."""
    network = small_monotone_mlp(scale=0.5)
    w = written_out(network, "mlp")
    exact = 1 + torch.rand(3, 6, dtype=torch.float64)
    injection = exact @ (torch.eye(6, dtype=torch.float64) - w).T
    for solver in (None, PeacemanRachford()):
        found = solve(network, injection, tolerance=1e-13, max_iterations=2000, solver=solver).fixed_point
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
