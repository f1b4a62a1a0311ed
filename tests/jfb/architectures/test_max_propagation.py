"""Max-propagation: what it promises in the maximum norm, against random states and against exact fixed points."""

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from jfb import LabelStop, ResidualNorm, Status, load, predict, residual, solve
from jfb.architectures import MaxPropagation, build
from jfb.checkpoint import save
from jfb.config import ArchitectureSpec, InputSpec, ModelConfig, Serving
from jfb.export import export
from jfb.gradients import JFB, Search, Unrolled
from jfb.solvers import SOLVERS
from tests.jfb.networks import small_max_propagation
from tests.jfb.onnx.folders import our_folder

logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports operators of libraries that are not installed


def images(rows: int, seed: int = 0, sides: tuple[int, int] = (6, 6)) -> Tensor:
    return torch.rand(rows, 1, *sides, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def largest(states: Tensor) -> Tensor:
    """The maximum norm of each row."""
    return states.flatten(1).abs().amax(1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), contraction=st.floats(0.01, 0.999), spread=st.floats(-3, 3), weights=st.floats(-1, 2))
def test_a_step_contracts_in_the_maximum_norm_whatever_the_weights(
    seed: int, contraction: float, spread: float, weights: float
) -> None:
    network = small_max_propagation(seed=seed, contraction=contraction)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(10**weights)
    injection = network.inject(images(16, seed))
    a, b = (10**spread * torch.randn(16, 4, 6, 6, dtype=torch.float64) for _ in range(2))
    apart, moved = largest(a - b), largest(network.step(a, injection) - network.step(b, injection))
    assert network.contraction_bound() == contraction
    assert network.bound_norm is ResidualNorm.MAX
    assert (moved <= contraction * apart * (1 + 1e-12)).all()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotations_and_reflections_of_an_image_do_not_change_its_logits(turns: int, mirrored: bool) -> None:
    network, inputs = small_max_propagation(), images(5)
    changed = inputs.rot90(turns, (2, 3)).flip(3) if mirrored else inputs.rot90(turns, (2, 3))
    one, other = (predict(network, both, tolerance=1e-9, max_iterations=200) for both in (inputs, changed))
    assert one.solution.iterations.tolist() == other.solution.iterations.tolist()
    assert torch.allclose(one.logits, other.logits, rtol=0, atol=1e-12)


def test_the_bound_is_reached_and_holds_in_no_other_norm() -> None:
    network = small_max_propagation()
    with torch.no_grad():
        network.gate.bias.fill_(50)  # all gates open
        network.gate.weight.zero_()
        network.source.bias.fill_(-50)  # nothing but what is passed on
    injection = network.inject(images(1))
    low = torch.full((1, 4, 6, 6), 100.0, dtype=torch.float64)
    high = low.clone()
    high[:, :, 2, 2] += 1
    moved = (network.step(high, injection) - network.step(low, injection)).detach()
    assert float(largest(moved)) == pytest.approx(0.9)
    assert float(moved.norm()) == pytest.approx(3 * 0.9 * float((high - low).norm())), "a value is copied to nine pixels"


def test_the_largest_value_in_reach_is_what_max_pooling_finds() -> None:
    network = MaxPropagation((1, 5, 7), 3, channels=4).double()
    state = torch.randn(3, 4, 5, 7, dtype=torch.float64)
    injection = torch.cat([torch.full_like(state, -9), torch.rand_like(state)], 1)
    expected = 0.98 * F.max_pool2d(injection[:, 4:] * state, 3, 1, 1)
    assert torch.equal(network.step(state, injection), expected)


@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (6, 6), (9, 4)])
def test_the_same_weights_take_any_size_and_the_iteration_ends_exactly(sides: tuple[int, int]) -> None:
    network = small_max_propagation(contraction=0.999).float()
    injection = network.inject(images(20, sides=sides).float())
    pixels = sides[0] * sides[1]
    found = solve(network, injection, tolerance=1e-30, max_iterations=pixels, residual_norm=ResidualNorm.MAX)
    assert found.residual.tolist() == [0.0] * 20
    assert found.status == [Status.CONVERGED] * 20
    assert network.readout(found.fixed_point).shape == (20, 3)
    if pixels > 6:
        assert found.iterations.max() > 3, "values travel"


def test_a_value_travels_one_pixel_per_iteration_and_not_through_a_closed_gate() -> None:
    network = small_max_propagation(contraction=0.5)
    injection = torch.zeros(1, 8, 1, 9, dtype=torch.float64)
    injection[:, 0, 0, 1] = 1.0
    injection[:, 4:] = 1.0
    injection[:, 4:, 0, 6] = 0.0
    state = network.initial_state(injection)
    for iteration in range(1, 7):
        state = network.step(state, injection)
        reached = [0.5 ** abs(column - 1) if abs(column - 1) <= iteration and column <= 6 else 0.0 for column in range(9)]
        assert state[0, 0, 0].tolist() == reached


@settings(max_examples=40, deadline=None)
@given(
    solver=st.sampled_from(["picard", "anderson"]),
    contraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 10_000),
    spread=st.floats(-1, 3),
)
def test_a_guaranteed_label_is_always_that_of_the_exact_fixed_point(
    solver: str, contraction: float, seed: int, spread: float
) -> None:
    network = small_max_propagation(seed=seed, contraction=contraction)
    injection = network.inject(images(16, seed))
    exact = solve(network, injection, tolerance=1e-14, max_iterations=5000).fixed_point
    with torch.no_grad():
        network.classify.bias -= network.readout(exact).mean(0)  # the classes are about even, so labels change on the way
    stop = LabelStop.guarantee(network)
    assert stop is not None
    start = 10**spread * torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = solve(
        network,
        injection,
        tolerance=1e-9,
        max_iterations=5000,
        solver=SOLVERS[solver](),
        start=start,
        label_stop=stop,
    )
    logits, exact_logits = network.readout(found.fixed_point), network.readout(exact)
    stable = torch.tensor([status is Status.LABEL_STABLE for status in found.status])
    assert found.stability is not None
    assert found.stability.stable[stable].all()
    assert (logits.argmax(1) == exact_logits.argmax(1))[stable].all()
    lipschitz = network.readout_lipschitz()
    label = logits.argmax(1, keepdim=True)
    lead, exact_lead = (z.gather(1, label) - z for z in (logits, exact_logits))
    slope = lipschitz[label.squeeze(1)].clamp_min(1e-300)
    rival = (lead / slope).scatter(1, label, torch.inf).argmin(1, keepdim=True)
    remaining = found.stability.bound.unsqueeze(1) / slope.gather(1, rival)
    assert (lead - exact_lead <= slope * remaining + 1e-9).all()


def test_labels_are_proved_before_the_iteration_ends() -> None:
    network = small_max_propagation(seed=3, contraction=0.5)
    injection = network.inject(images(200, 3))
    with torch.no_grad():
        point = solve(network, injection, tolerance=1e-14, max_iterations=5000).fixed_point
        network.classify.bias -= network.readout(point).mean(0)
    arguments = {"tolerance": 1e-9, "max_iterations": 100, "residual_norm": ResidualNorm.MAX, "start": point + 10}
    with_label = solve(network, injection, label_stop=LabelStop.guarantee(network), **arguments)
    without = solve(network, injection, **arguments)
    assert with_label.status.count(Status.LABEL_STABLE) > 100
    labels = [network.readout(found.fixed_point).argmax(1) for found in (with_label, without)]
    assert torch.equal(*labels)
    assert with_label.iterations.double().mean() < 0.9 * without.iterations.double().mean()


def test_a_readout_is_not_steeper_than_it_says_and_as_steep_where_nothing_is_cut_off() -> None:
    network = small_max_propagation(seed=1)
    states = network.initial_state(network.inject(images(30, 1)))
    stated = network.readout_lipschitz()
    others = states + torch.randn(states.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    change = network.readout(others) - network.readout(states)
    seen = (change[:, :, None] - change[:, None, :]).abs() / largest(others - states)[:, None, None]
    assert (seen <= stated * (1 + 1e-9)).all()
    # One feature, in the linear part of its ReLU: moving every channel by one along the signs of its weights reaches the bound.
    with torch.no_grad():
        network.read.bias.fill_(100.0)
        network.classify.weight[:, 1:] = 0
    signs = network.read.weight[0, :, 0, 0].sign().view(1, -1, 1, 1)
    change = network.readout(states + signs) - network.readout(states)
    stated = network.readout_lipschitz()
    torch.testing.assert_close(change[:, 0] - change[:, 1], (stated[0, 1] * _sign(network)).expand(30))


def _sign(network: MaxPropagation) -> Tensor:
    return (network.classify.weight[0, 0] - network.classify.weight[1, 0]).sign().detach()


def test_a_row_does_the_same_alone_and_in_a_batch() -> None:
    network = small_max_propagation(contraction=0.98).float()
    inputs = images(40).float()
    batch = predict(network, inputs, tolerance=1e-3, max_iterations=100)
    assert len(set(batch.solution.iterations.tolist())) > 1
    for row in range(40):
        alone = predict(network, inputs[row : row + 1], tolerance=1e-3, max_iterations=100)
        assert int(alone.solution.iterations) == int(batch.solution.iterations[row])
        torch.testing.assert_close(alone.logits[0], batch.logits[row], rtol=0, atol=1e-5)


def _loss(network: MaxPropagation, inputs: Tensor, labels: Tensor) -> Tensor:
    """At the fixed points, without a graph."""
    with torch.no_grad():
        point = solve(network, network.inject(inputs), tolerance=1e-14, max_iterations=500).fixed_point
        return F.cross_entropy(network.readout(point), labels)


@pytest.mark.parametrize("seed", range(5))
def test_jfb_descends_and_so_does_unrolling(seed: int) -> None:
    """Max-norm contraction is no condition of Theorem 0.2, so that JFB descends is seen here, and not proved."""
    network = small_max_propagation(seed=seed, contraction=0.98)
    inputs, labels = images(8, seed), torch.arange(8) % 3
    search = Search(tolerance=1e-14, max_iterations=500)
    directions = []
    for gradient in (JFB(), Unrolled()):
        network.zero_grad()
        state, _ = gradient(network, network.inject(inputs), search)
        F.cross_entropy(network.readout(state), labels).backward()
        directions.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    jfb, exact = (torch.cat([part.flatten() for part in direction]) for direction in directions)
    assert float(F.cosine_similarity(jfb, exact, dim=0)) > 0.1
    before = _loss(network, inputs, labels)
    length = 1e-6
    with torch.no_grad():
        for parameter, part in zip(network.parameters(), directions[0], strict=True):
            parameter -= length * part / jfb.norm()
    fallen = float(before - _loss(network, inputs, labels)) / length
    assert fallen > 0
    # By as much as the exact gradient says of this direction.
    assert fallen == pytest.approx(float(jfb @ exact / jfb.norm()), rel=1e-2)


def test_a_saved_network_is_loaded_with_its_guarantee(tmp_path: Path) -> None:
    arguments = {"channels": 4, "features": 5, "contraction": 0.9}
    network = build("max_propagation", (3, 7, 7), 3, arguments).eval()
    config = ModelConfig(
        architecture=ArchitectureSpec(name="max_propagation", arguments=arguments),
        input=InputSpec(shape=(3, 7, 7), kind="image", low=0, high=255),
        classes=["a", "b", "c"],
        serving=Serving(residual_norm=ResidualNorm.MAX),
    )
    save(tmp_path, config, network)
    loaded = load(tmp_path)
    assert isinstance(loaded.network, MaxPropagation)
    assert loaded.config.serving.residual_norm is ResidualNorm.MAX
    assert LabelStop.guarantee(loaded.network) is not None
    inputs = 255 * torch.rand(5, 3, 7, 7)
    ours, theirs = (predict(n, inputs, tolerance=1e-4, max_iterations=50).logits for n in (network, loaded.network))
    assert torch.equal(ours, theirs)
    point = network.initial_state(network.inject(inputs))
    assert residual(point, point + 0.25, ResidualNorm.MAX).tolist() == pytest.approx([0.25] * 5)


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((5,), {}, r"input.shape: must be \[channels, height, width\]"),
        ((1, 4, 4), {"channels": 0}, "channels, features: must be at least 1"),
        ((1, 4, 4), {"contraction": 1.0}, r"contraction: must be a number in \(0, 1\)"),
    ],
)
def test_arguments_out_of_range_are_rejected(shape: tuple[int, ...], arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("max_propagation", shape, 3, arguments)


@pytest.mark.slow
def test_the_exported_graph_ends_every_row_where_predict_does(tmp_path: Path) -> None:
    network = small_max_propagation(contraction=0.98).float()
    arguments = {"mean": 0.5, "std": 0.3, "channels": 4, "features": 5, "contraction": 0.98}
    folder = our_folder(tmp_path, network, "max_propagation", (1, 6, 6), "max", **arguments)
    written = export(folder, parts=True)
    assert {path.name for path in written} == {
        "model.onnx",
        "inject.onnx",
        "initial_state.onnx",
        "step.onnx",
        "readout.onnx",
    }
    inputs = images(60).float()
    tolerance = torch.logspace(-4, 1, 60)
    caps = torch.arange(60) % 7 + 1
    expected = predict(network, inputs, tolerance=tolerance, max_iterations=caps, residual_norm=ResidualNorm.MAX)
    assert set(expected.solution.status) == {Status.CONVERGED, Status.MAX_ITERATIONS}
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {"inputs": inputs.numpy(), "tolerance": tolerance.numpy(), "max_iterations": caps.numpy()}
    logits, iterations, moved, converged = session.run(["logits", "iterations", "residual", "converged"], feed)
    assert iterations.tolist() == expected.solution.iterations.tolist()
    assert converged.tolist() == [status is Status.CONVERGED for status in expected.solution.status]
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(moved, expected.solution.residual, atol=1e-5)
