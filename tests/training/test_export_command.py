"""``python -m training export``, as a user runs it."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import jfb
from jfb import ModelConfig, checkpoint
from jfb.architectures import build
from jfb.store import new_version
from training.__main__ import main

CONFIG = ModelConfig.model_validate(
    {
        "architecture": {"name": "implicit_mlp", "arguments": {"width": 8}},
        "input": {"shape": [4], "kind": "vector"},
        "classes": ["no", "yes"],
        "serving": {"solver": "anderson"},
    }
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JFB_MODEL_STORE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    for _ in range(2):
        with new_version(tmp_path, "answers") as folder:
            checkpoint.save(folder, CONFIG, build("implicit_mlp", [4], 2, {"width": 8}))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["training", "export", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.slow
def test_the_highest_version_of_a_model_is_exported_with_its_parts(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "answers", "--parts") == 0
    told = capsys.readouterr().out
    names = ["initial_state.onnx", "inject.onnx", "model.onnx", "readout.onnx", "step.onnx"]
    assert sorted(path.name for path in (store / "answers" / "2").glob("*.onnx")) == names
    assert all(f"2/{name}: " in told for name in names)
    assert "model.onnx iterates plainly" in told, "this model is served with another solver"
    assert not list((store / "answers" / "1").glob("*.onnx"))

    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    expected = jfb.predict(jfb.load(store / "answers" / "2").network, inputs, tolerance=1e-5, max_iterations=100)
    session = onnxruntime.InferenceSession(store / "answers" / "2" / "model.onnx")
    feed = {"inputs": inputs.numpy(), "tolerance": np.full(3, 1e-5, np.float32), "max_iterations": np.full(3, 100)}
    np.testing.assert_allclose(session.run(["logits"], feed)[0], expected.logits, atol=1e-4)


def test_a_model_that_is_not_there_is_one_line(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "questions") == 1
    assert "error: no model 'questions'" in capsys.readouterr().err


def test_a_broken_model_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "answers" / "2" / "model.safetensors").write_bytes(b"broken")
    assert run(monkeypatch, "answers") == 1
    assert "not a readable safetensors file" in capsys.readouterr().err
