"""A version that has a solver of its own: written, read, and rejected where it does not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jfb import CheckpointError, load, predict
from jfb.architectures import build
from jfb.checkpoint import save
from jfb.config import ModelConfig
from jfb.solvers import Mixing, Picard
from tests.jfb.onnx.folders import foreign_folder
from tests.jfb.test_checkpoint import ARGUMENTS, config


def mixing() -> Mixing:
    matrix = 1.2 * torch.eye(4) + 0.1 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    return Mixing(matrix, torch.tensor([0.1, 0.0, -0.1, 0.2]), 0.7)


def served_by(solver: str) -> ModelConfig:
    return config().model_copy(update={"serving": config().serving.model_copy(update={"solver": solver})})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(tmp_path, served_by("mixing"), build("implicit_resnet", (1, 6, 6), 3, ARGUMENTS), mixing())
    return tmp_path


def test_it_is_read_as_it_was_written_and_is_the_models_default(folder: Path) -> None:
    loaded = load(folder)
    assert loaded.mixing is not None
    assert all(torch.equal(tensor, mixing().tensors[name]) for name, tensor in loaded.mixing.tensors.items())
    assert list(loaded.solvers) == ["mixing", "picard", "anderson"]
    assert loaded.solver is loaded.mixing
    found = predict(loaded.network, torch.rand(5, 1, 6, 6), tolerance=1e-4, max_iterations=50, solver=loaded.solver)
    assert set(found.solution.status) == {"converged"}


def test_a_model_may_have_one_and_be_served_with_another(tmp_path: Path) -> None:
    save(tmp_path, served_by("anderson"), build("implicit_resnet", (1, 6, 6), 3, ARGUMENTS), mixing())
    assert list(load(tmp_path).solvers) == ["anderson", "picard", "mixing"]


def test_a_model_without_one_is_as_before(tmp_path: Path) -> None:
    save(tmp_path, config(), build("implicit_resnet", (1, 6, 6), 3, ARGUMENTS))
    loaded = load(tmp_path)
    assert not (tmp_path / "solver.safetensors").exists()
    assert loaded.mixing is None
    assert list(loaded.solvers) == ["picard", "anderson"]
    assert isinstance(loaded.solver, Picard)


def test_a_default_without_its_coefficients_is_neither_written_nor_read(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"serving\.solver: must come with its coefficients \(got 'mixing'\)"):
        save(folder, served_by("mixing"), load(folder).network)
    (folder / "solver.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"solver\.safetensors: No such file"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matrix": torch.eye(5)}, r"matrix: must have shape \[4, 4\] \(got \[5, 5\]\)"),
        ({"momentum": torch.zeros(1)}, r"momentum: must have shape \[4\] \(got \[1\]\)"),
        ({"rate": None}, "rate is missing"),
        ({"more": torch.zeros(1)}, "more is not part of this solver"),
        ({"matrix": torch.full((4, 4), torch.nan)}, r"matrix: must have a spectral norm of at most 16 \(got inf\)"),
        ({"rate": torch.tensor(2.0)}, r"rate: must be between 0 and 1 \(got 2\)"),
        ({"momentum": torch.zeros(4).double()}, r"momentum: must be torch.float32 \(got torch.float64\)"),
    ],
)
def test_coefficients_that_do_not_fit_the_network_are_named(
    folder: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    path = folder / "solver.safetensors"
    changed = load_file(path) | changes
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(CheckpointError, match=rf"solver\.safetensors: {message}"):
        load(folder)


def test_a_network_of_onnx_graphs_may_have_one(tmp_path: Path) -> None:
    folder = foreign_folder(tmp_path / "foreign")
    solver = Mixing(1.5 * torch.eye(3), torch.zeros(3), 0.7)
    save_file(solver.tensors, folder / "solver.safetensors")
    loaded = load(folder)
    assert loaded.mixing is not None
    inputs = torch.randn(4, 3)
    plain, mixed = (
        predict(loaded.network, inputs, tolerance=1e-5, max_iterations=200, solver=each) for each in (Picard(), loaded.mixing)
    )
    torch.testing.assert_close(mixed.logits, plain.logits, atol=1e-3, rtol=0)
    assert mixed.solution.iterations.sum() < plain.solution.iterations.sum()
