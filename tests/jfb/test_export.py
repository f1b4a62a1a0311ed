"""The exported graph, run by ONNX Runtime, against ``jfb.predict``."""

import io
import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import jfb
from jfb import CheckpointError, ImplicitNetwork, ModelConfig, Prediction, ResidualNorm, checkpoint
from jfb.architectures import build
from jfb.export import export
from jfb.onnx.file import OPSET, messages
from jfb.onnx.network import OnnxNetwork
from tests.jfb.networks import small_mlp, small_resnet
from tests.jfb.onnx.folders import foreign_folder, our_folder

logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of libraries that are not installed

pytestmark = pytest.mark.slow

IMAGE, VECTOR = (1, 6, 6), (5,)
RESNET = {"mean": 0.5, "std": 0.3, "channels": [4], "pool": [2]}


@pytest.fixture(scope="module", params=["resnet-relative", "mlp-absolute", "authors-channel_max"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported version, with its parts."""
    kind, norm = request.param.split("-")
    where = tmp_path_factory.mktemp(request.param)
    if kind == "resnet":
        folder = our_folder(where, small_resnet().float(), "implicit_resnet", IMAGE, norm, **RESNET)
    elif kind == "mlp":
        folder = our_folder(where, small_mlp().float(), "implicit_mlp", VECTOR, norm, width=6)
    else:
        torch.manual_seed(0)
        network = build("authors_resnet", (1, 9, 9), 3, {}).eval()
        for name, weight in network.state_dict().items():
            if name.startswith("latent_convs") and name.endswith("weight"):
                weight *= 0.5  # at random it is no contraction
        folder = our_folder(where, network, "authors_resnet", (1, 9, 9), norm)
    (folder / "model.onnx").write_text("an older export")
    written = export(folder, parts=True)
    assert set(written) == set(folder.glob("*.onnx"))
    return folder


def session(folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


def run(folder: Path, inputs: Tensor, tolerance: Tensor, max_iterations: Tensor) -> dict[str, np.ndarray]:
    """The outputs of ``model.onnx`` by name."""
    ran = session(folder)
    names = [output.name for output in ran.get_outputs()]
    feed = {"inputs": inputs.numpy(), "tolerance": tolerance.numpy(), "max_iterations": max_iterations.numpy()}
    return dict(zip(names, ran.run(names, feed), strict=True))


def inputs_of(config: ModelConfig, rows: int, seed: int = 0) -> Tensor:
    shape = (rows, *config.input.shape)
    generator = torch.Generator().manual_seed(seed)
    if config.architecture.name == "authors_resnet":
        return 255 * torch.rand(shape, generator=generator)
    # Of many sizes, so that rows take different numbers of iterations.
    return torch.randn(shape, generator=generator) * torch.logspace(-2, 1, rows).view(-1, *(1,) * len(config.input.shape))


def clear_tolerances(folder: Path, network: ImplicitNetwork, inputs: Tensor) -> Tensor:
    """One per row, each between two successive residuals of its row, so that rounding does not decide when it ends."""
    norm = checkpoint.read_config(folder).serving.residual_norm
    with torch.no_grad():
        injection = network.inject(inputs)
        states = [network.initial_state(injection)]
        for _ in range(15):
            states.append(network.step(states[-1], injection))
    residuals = torch.stack([jfb.residual(*pair, norm) for pair in pairwise(states)])
    reliable = (residuals > 1e-3 * residuals[0]).cumprod(0).sum(0) - 1  # further on, residuals are rounding themselves
    rows = torch.arange(len(inputs))
    ends = torch.minimum(rows % 14 + 1, reliable).clamp_min(1)
    return (residuals[ends - 1, rows] * residuals[ends, rows]).sqrt()


def assert_same(found: dict[str, np.ndarray], expected: Prediction, tolerance: Tensor) -> None:
    assert found["iterations"].dtype == np.int64
    assert found["converged"].dtype == np.bool_
    assert found["iterations"].tolist() == expected.solution.iterations.tolist()
    np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-4)
    np.testing.assert_allclose(found["residual"], expected.solution.residual, rtol=1e-2, atol=1e-6)
    assert found["converged"].tolist() == [status == "converged" for status in expected.solution.status]


def predict(folder: Path, network: ImplicitNetwork, inputs: Tensor, tolerance: Tensor, max_iterations: Tensor) -> Prediction:
    norm = checkpoint.read_config(folder).serving.residual_norm
    return jfb.predict(network, inputs, tolerance=tolerance, max_iterations=max_iterations, residual_norm=norm)


@pytest.mark.parametrize("rows", [1, 2, 37, 300])
def test_every_row_is_answered_as_by_predict_with_tolerances_and_caps_mixed(folder: Path, rows: int) -> None:
    loaded = jfb.load(folder)
    inputs = inputs_of(loaded.config, rows)
    tolerance = clear_tolerances(folder, loaded.network, inputs)
    max_iterations = torch.randint(1, 20, (rows,), generator=torch.Generator().manual_seed(1))
    expected = predict(folder, loaded.network, inputs, tolerance, max_iterations)
    if rows > 2:
        assert len(set(expected.solution.iterations.tolist())) > 5
        assert set(expected.solution.status) == {"converged", "max_iterations"}
    assert_same(run(folder, inputs, tolerance, max_iterations), expected, tolerance)


@pytest.mark.parametrize("cap", [1, 2**62])
def test_the_extreme_caps_are_kept(folder: Path, cap: int) -> None:
    loaded = jfb.load(folder)
    inputs = inputs_of(loaded.config, 8)
    tolerance, max_iterations = clear_tolerances(folder, loaded.network, inputs), torch.full((8,), cap)
    expected = predict(folder, loaded.network, inputs, tolerance, max_iterations)
    assert (expected.solution.iterations == 1).all() == (cap == 1)
    assert_same(run(folder, inputs, tolerance, max_iterations), expected, tolerance)


def test_the_parts_driven_by_solve_answer_as_the_network_does(folder: Path) -> None:
    loaded = jfb.load(folder)
    parts = OnnxNetwork(folder, loaded.config)
    inputs = inputs_of(loaded.config, 37)
    tolerance = clear_tolerances(folder, loaded.network, inputs)
    max_iterations = torch.arange(37) + 1
    expected = predict(folder, loaded.network, inputs, tolerance, max_iterations)
    found = predict(folder, parts, inputs, tolerance, max_iterations)
    assert found.solution.iterations.tolist() == expected.solution.iterations.tolist()
    assert found.solution.status == expected.solution.status
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)


def test_the_files_say_what_the_model_card_says_and_nothing_about_where_they_were_made(folder: Path) -> None:
    config = checkpoint.read_config(folder)
    for path in folder.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert (facts["format_version"], facts["name"], facts["version"]) == ("1", "small", "3")
        assert (facts["tolerance"], facts["max_iterations"]) == ("0.01", "80")
        assert facts["residual_norm"] == config.serving.residual_norm
        assert facts["accuracy"] == "0.875"
        assert json.loads(facts["classes"]) == ["a", "b", "c"]
        assert json.loads(facts["input"])["shape"] == list(config.input.shape)
        assert {value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)} == {"n"}
        nodes = [message for message in messages(model) if isinstance(message, onnx.NodeProto)]
        assert nodes
        assert not any(node.metadata_props or node.doc_string for node in nodes)
        assert b".py" not in path.read_bytes()
        assert path.stat().st_size < 200_000


def test_an_older_export_is_replaced_and_a_start_is_written_where_it_is_not_zero(folder: Path) -> None:
    start = ["initial_state.onnx"] if checkpoint.read_config(folder).architecture.name != "authors_resnet" else []
    exported = ["inject.onnx", "model.onnx", "readout.onnx", "step.onnx", *start]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["config.json", "metrics.json", "model.safetensors", *exported]
    )
    session(folder)


LONG_NORMS = [pytest.param(norm, marks=pytest.mark.long) for norm in (ResidualNorm.CHANNEL_MAX, ResidualNorm.MAX)]


@pytest.mark.parametrize("norm", [ResidualNorm.RELATIVE, *LONG_NORMS])
def test_a_diverging_row_ends_when_it_does_in_solve_and_leaves_its_neighbours_alone(tmp_path: Path, norm: ResidualNorm) -> None:
    network = small_mlp().float()
    with torch.no_grad():
        network.latent.weight.copy_(3 * torch.eye(6))  # grows until it overflows
        network.encode[2].weight.copy_(torch.eye(6))
        network.encode[0].bias.zero_()
        network.encode[2].bias.zero_()
    folder = our_folder(tmp_path, network, "implicit_mlp", VECTOR, norm, width=6, slope=1.0)
    export(folder)
    loaded = jfb.load(folder)
    inputs = torch.randn(6, 5)
    inputs[::2] = 0  # those are at their fixed point, zero
    tolerance, max_iterations = torch.full((6,), 1e-3), torch.full((6,), 10_000)
    expected = predict(folder, loaded.network, inputs, tolerance, max_iterations)
    assert expected.solution.status == ["converged", "diverged"] * 3
    found = run(folder, inputs, tolerance, max_iterations)
    assert found["iterations"].tolist() == expected.solution.iterations.tolist()
    assert found["converged"].tolist() == [True, False] * 3
    assert np.isfinite(found["residual"]).tolist() == [True, False] * 3
    np.testing.assert_allclose(found["logits"][::2], expected.logits[::2], atol=1e-4)


def test_a_row_with_a_nan_among_finite_entries_has_diverged(tmp_path: Path) -> None:
    """ONNX Runtime's maximum passes over NaN, so this is not a matter of course."""
    arguments = {"channels": [4], "pool": [1]}  # no pooling: its maximum passes over NaN as well
    network = build("implicit_resnet", IMAGE, 3, arguments).eval()
    folder = our_folder(tmp_path, network, "implicit_resnet", IMAGE, "channel_max", **arguments)
    export(folder)
    inputs = torch.rand(6, *IMAGE)
    for row in range(6):
        inputs[row, 0, row, 0] = torch.nan  # reaches positions near it and no others
    tolerance, max_iterations = torch.full((6,), 1e-3), torch.full((6,), 50)
    expected = predict(folder, network, inputs, tolerance, max_iterations)
    assert expected.solution.fixed_point.isfinite().flatten(1).any(1).all()
    assert expected.solution.iterations.tolist() == [1] * 6
    found = run(folder, inputs, tolerance, max_iterations)
    assert found["iterations"].tolist() == [1] * 6
    assert not np.isfinite(found["residual"]).any()
    assert not found["converged"].any()


def test_a_folder_that_is_onnx_already_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"architecture\.name: must not be onnx: this version is ONNX already"):
        export(foreign_folder(tmp_path / "1"))


@pytest.mark.long  # above, the same architecture with random weights
def test_the_authors_network_for_mnist_answers_as_their_own_program_does(shared: Path, tmp_path: Path) -> None:
    arguments = {"stem": "plain", "mean": 0.1307, "std": 0.3081}
    network = build("authors_resnet", (1, 28, 28), 10, arguments).eval()
    network.load_state_dict(load_file(shared / "authors" / "mnist_fpn.safetensors"), strict=False)
    config = ModelConfig.model_validate(
        {
            "architecture": {"name": "authors_resnet", "arguments": arguments},
            "input": {"shape": [1, 28, 28], "kind": "image", "low": 0, "high": 255},
            "classes": [str(digit) for digit in range(10)],
            "serving": {"residual_norm": "channel_max"},
        }
    )
    folder = tmp_path / "authors" / "1"
    folder.mkdir(parents=True)
    checkpoint.save(folder, config, network)
    export(folder, parts=True)
    images = mnist_images(shared, 256)
    tolerance = torch.tensor([0.1, 0.01, 0.001, 0.0001]).repeat(64)
    max_iterations = torch.full((256,), 200)
    expected = predict(folder, network, images, tolerance, max_iterations)
    reference = np.load(shared / "authors" / "mnist_fpn_reference.npz")
    theirs = np.stack([reference[f"iterations_{epsilon}"][:256] for epsilon in ("0.1", "0.01", "0.001", "0.0001")], axis=1)
    theirs = theirs[np.arange(256), np.arange(256) % 4]
    parts = predict(folder, OnnxNetwork(folder, config), images, tolerance, max_iterations)
    whole = run(folder, images, tolerance, max_iterations)
    for iterations, logits in ((parts.solution.iterations.numpy(), parts.logits.numpy()), (whole["iterations"], whole["logits"])):
        assert np.abs(iterations - theirs).max() <= 1
        assert (iterations != theirs).sum() <= 2, "more than rounding explains"
        same = iterations == expected.solution.iterations.numpy()
        assert (~same).sum() <= 2
        np.testing.assert_allclose(logits[same], expected.logits.numpy()[same], atol=1e-4)


def mnist_images(shared: Path, count: int) -> Tensor:
    """The first test images, ``[count, 1, 28, 28]``, in [0, 255]."""
    table = pq.read_table(shared / "data" / "mnist" / "test-00000-of-00001.parquet").slice(0, count)
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(pictures)).float().unsqueeze(1)
