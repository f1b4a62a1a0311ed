"""The exported graph of a model with learned mixing, run by ONNX Runtime, against ``jfb.predict``."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import jfb
from jfb.checkpoint import save_mixing
from jfb.export import export
from jfb.solvers import Mixing
from jfb.store import write_config
from tests.jfb.networks import small_mlp, small_resnet
from tests.jfb.onnx.folders import our_folder
from tests.jfb.solvers.test_mixing import adversaries
from tests.jfb.test_export import IMAGE, RESNET, VECTOR, inputs_of, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["resnet-channel_max-singular", "mlp-absolute-random"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version served with mixing, exported. Both send rows back to Picard iteration."""
    kind, norm, coefficients = request.param.split("-")
    where = tmp_path_factory.mktemp(request.param)
    if kind == "resnet":
        folder = our_folder(where, small_resnet().float(), "implicit_resnet", IMAGE, norm, **RESNET)
    else:
        folder = our_folder(where, small_mlp().float(), "implicit_mlp", VECTOR, norm, width=6)
    matrix, momentum = adversaries(4 if kind == "resnet" else 6)[coefficients]
    save_mixing(folder, Mixing(matrix.float(), momentum.float(), 0.7))
    config = jfb.load(folder).config
    write_config(folder, config.model_copy(update={"serving": config.serving.model_copy(update={"solver": "mixing"})}))
    export(folder)
    return folder


@pytest.mark.parametrize("rows", [1, 2, 60])
def test_every_row_is_answered_as_by_predict_with_the_models_solver(folder: Path, rows: int) -> None:
    loaded = jfb.load(folder)
    norm = loaded.config.serving.residual_norm
    inputs = inputs_of(loaded.config, rows)
    tolerance = torch.tensor([0.3, 0.03, 0.003]).repeat(20)[:rows]
    max_iterations = torch.arange(rows) % 30 + 5
    expected = jfb.predict(
        loaded.network, inputs, tolerance=tolerance, max_iterations=max_iterations, residual_norm=norm, solver=loaded.solver
    )
    found = run(folder, inputs, tolerance, max_iterations)
    # Where rounding falls on the very threshold, a count may differ by one.
    differences = np.abs(found["iterations"] - expected.solution.iterations.numpy())
    assert differences.max() <= 1
    assert (differences > 0).sum() <= rows // 30
    np.testing.assert_allclose(found["logits"][differences == 0], expected.logits[differences == 0], atol=1e-4)
    same = differences == 0
    assert found["converged"][same].tolist() == [
        status == "converged" for status, kept in zip(expected.solution.status, same, strict=True) if kept
    ]


def test_the_file_names_the_solver(folder: Path) -> None:
    facts = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert facts["solver"] == "mixing"


@pytest.mark.parametrize("folder", ["mlp-absolute-random"], indirect=True)
def test_a_model_served_with_anderson_is_exported_with_picard_though_it_has_mixing(folder: Path, tmp_path: Path) -> None:
    for file in ("model.safetensors", "solver.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    config = jfb.load(folder).config
    write_config(tmp_path, config.model_copy(update={"serving": config.serving.model_copy(update={"solver": "anderson"})}))
    (path,) = export(tmp_path)
    assert {entry.key: entry.value for entry in onnx.load(path).metadata_props}["solver"] == "picard"
