"""LearnedStart: stored with the network, and where its iterations begin."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import jfb
from jfb import CheckpointError, ImplicitNetwork, ModelConfig, ResidualNorm, residual
from jfb.architectures import build
from jfb.checkpoint import load, save
from jfb.config import LearnedStartSpec
from jfb.export import export
from jfb.learned_start import LearnedStart
from jfb.onnx.network import OnnxNetwork
from jfb.solvers import Anderson, Mixing, Picard, Solver
from jfb.solvers.mixing import SLACK
from tests.jfb.networks import small_mlp, small_resnet
from tests.jfb.onnx.folders import our_folder
from tests.jfb.solvers.test_mixing import adversaries
from tests.jfb.test_export import IMAGE, RESNET, VECTOR, inputs_of, run

KINDS = ("image", "vector")


def folder_of(where: Path, kind: str, seed: int = 0) -> Path:
    """A version whose learned start is random, so that every row begins far from where it would have without."""
    if kind == "image":
        folder = our_folder(where, small_resnet().float(), "implicit_resnet", IMAGE, "channel_max", **RESNET)
    else:
        folder = our_folder(where, small_mlp().float(), "implicit_mlp", VECTOR, "relative", width=6)
    loaded = load(folder)
    injection = loaded.network.inject(torch.zeros(1, *loaded.config.input.shape))
    shape = tuple(injection.shape[1:])
    torch.manual_seed(seed)
    loaded.network.learned_start = LearnedStart(shape, shape, bottleneck=3)
    spec = LearnedStartSpec(injection_shape=shape, state_shape=shape, bottleneck=3)
    save(folder, loaded.config.model_copy(update={"learned_start": spec}), loaded.network)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp(request.param), request.param)


def solve(network: ImplicitNetwork, config: ModelConfig, solver: Solver, **keywords: torch.Tensor) -> jfb.Solution:
    injection = network.inject(inputs_of(config, 40))
    norm = config.serving.residual_norm
    return jfb.solve(network, injection, tolerance=1e-4, max_iterations=500, residual_norm=norm, solver=solver, **keywords)


def test_it_is_loaded_with_the_network_and_iterations_begin_there(folder: Path) -> None:
    loaded = load(folder)
    network, start = loaded.network, loaded.network.learned_start
    assert start is not None
    injection = network.inject(inputs_of(loaded.config, 40))
    assert torch.equal(network.first_state(injection), start(injection))
    assert not torch.equal(network.initial_state(injection), start(injection))
    found = solve(network, loaded.config, Picard())
    given = solve(network, loaded.config, Picard(), start=start(injection))
    assert torch.equal(found.iterations, given.iterations)
    assert torch.equal(found.fixed_point, given.fixed_point)


def test_the_fixed_point_is_the_same_with_every_solver_and_any_start(folder: Path) -> None:
    loaded = load(folder)
    network = loaded.network
    exact = solve(network, loaded.config, Picard(), start=network.initial_state(network.inject(inputs_of(loaded.config, 40))))
    channels = exact.fixed_point.shape[1]
    mixings = [Mixing(matrix.float(), momentum.float(), 0.7) for matrix, momentum in adversaries(channels).values()]
    for solver in (Picard(), Anderson(), *mixings):
        found = solve(network, loaded.config, solver)
        assert set(found.status) == {"converged"}
        torch.testing.assert_close(found.fixed_point, exact.fixed_point, atol=3e-3, rtol=0)


def test_the_safeguard_bounds_iterations_by_the_first_residual_wherever_a_row_starts(folder: Path) -> None:
    """``r_k <= 1.25 * r_1 * gamma^(k-3)`` for every A and b, if the safeguard's rate is not above the contraction factor."""
    loaded = load(folder)
    network, tolerance = loaded.network, 1e-3
    injection = network.inject(inputs_of(loaded.config, 40))
    start = network.first_state(injection)
    first = residual(start, network.step(start, injection), ResidualNorm.ABSOLUTE)
    factor = network.contraction_bound()
    assert factor is not None
    most = 3 + ((SLACK * first / tolerance).log() / -math.log(factor)).clamp_min(0).ceil()
    for matrix, momentum in adversaries(start.shape[1]).values():
        mixing = Mixing(matrix.float(), momentum.float(), 0.7)
        norm = ResidualNorm.ABSOLUTE
        found = jfb.solve(network, injection, tolerance=tolerance, max_iterations=500, residual_norm=norm, solver=mixing)
        assert (found.iterations <= most).all()


def test_rows_are_independent_and_the_folded_network_begins_there_too(folder: Path) -> None:
    loaded = load(folder)
    network, inputs = loaded.network, inputs_of(loaded.config, 40)
    together = network.first_state(network.inject(inputs))
    alone = torch.cat([network.first_state(network.inject(row)) for row in inputs.split(1)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    folded = network.folded()
    torch.testing.assert_close(folded.first_state(folded.inject(inputs)), together, atol=1e-4, rtol=1e-4)


def test_authors_networks_keep_it_when_they_are_folded() -> None:
    network = build("authors_resnet", (1, 28, 28), 10, {}).eval()
    network.learned_start = LearnedStart((32, 9, 9), (32, 9, 9), bottleneck=2)
    assert network.folded().learned_start is not None


def test_images_of_another_size_begin_without_it(tmp_path: Path) -> None:
    network = load(folder_of(tmp_path, "image")).network
    injection = torch.rand(2, 4, 5, 7)
    assert torch.equal(network.first_state(injection), network.initial_state(injection))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck": 4}, r"learned_start\.everywhere\.1\.weight: must have shape \[4, 36\] \(got \[3, 36\]\)"),
        (None, r"learned_start\.[\w.]+ is not part of this architecture"),
        ({"state_shape": (4, 9, 1)}, "first"),
        ({"injection_shape": (4, -3, -3)}, r"injection_shape: must be positive integers \(got \[4, -3, -3\]\)"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    tmp_path: Path, changes: dict[str, object] | None, message: str
) -> None:
    folder = folder_of(tmp_path, "image")
    content = load(folder).config.model_dump(mode="json")
    content["learned_start"] = None if changes is None else content["learned_start"] | changes
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_one_for_other_shapes_is_neither_written_nor_read(tmp_path: Path) -> None:
    loaded = load(folder_of(tmp_path, "vector"))
    loaded.network.learned_start = LearnedStart((5,), (6,), bottleneck=3)
    spec = LearnedStartSpec(injection_shape=(5,), state_shape=(6,), bottleneck=3)
    with pytest.raises(CheckpointError, match=r"must be the network's, \[6\] and \[6\] \(got \[5\] and \[6\]\)"):
        save(tmp_path / "other", loaded.config.model_copy(update={"learned_start": spec}), loaded.network)


@pytest.mark.parametrize("kind", [pytest.param("vector", marks=pytest.mark.slow), pytest.param("image", marks=pytest.mark.long)])
def test_the_exported_graph_starts_there_and_counts_as_predict_does(kind: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, kind)
    export(folder)
    loaded = load(folder)
    inputs = inputs_of(loaded.config, 30)
    norm = loaded.config.serving.residual_norm
    expected = jfb.predict(loaded.network, inputs, tolerance=1e-3, max_iterations=300, residual_norm=norm)
    found = run(folder, inputs, torch.full((30,), 1e-3), torch.full((30,), 300))
    differences = np.abs(found["iterations"] - expected.solution.iterations.numpy())
    assert (differences > 0).sum() <= 1, "where rounding falls on the very threshold"
    assert differences.max() <= 1
    same = differences == 0
    np.testing.assert_allclose(found["logits"][same], expected.logits[same], atol=1e-4)


@pytest.mark.long
def test_a_network_of_the_exported_parts_starts_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "vector")
    assert "initial_state.onnx" in [path.name for path in export(folder, parts=True)]
    loaded = load(folder)
    foreign = OnnxNetwork(folder, loaded.config)
    injection = loaded.network.inject(inputs_of(loaded.config, 30))
    torch.testing.assert_close(foreign.first_state(injection), loaded.network.first_state(injection), atol=1e-5, rtol=0)
