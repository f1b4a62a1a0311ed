import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jfb import CheckpointError, ModelConfig, ResidualNorm, load, predict
from jfb.architectures import ImplicitResNet, build
from jfb.checkpoint import find_folder, save
from jfb.config import ArchitectureSpec, InputSpec, LabelCalibration
from jfb.solvers import Anderson, Picard
from jfb.store import CONFIG, new_version

ARGUMENTS: dict[str, Any] = {"channels": [4], "pool": [2], "mean": [0.5], "std": 0.25}


def config() -> ModelConfig:
    return ModelConfig(
        architecture=ArchitectureSpec(name="implicit_resnet", arguments=ARGUMENTS),
        input=InputSpec(shape=(1, 6, 6), kind="image", low=0, high=1),
        classes=["a", "b", "c"],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    with new_version(tmp_path, "letters") as new:
        save(new, config(), build("implicit_resnet", (1, 6, 6), 3, ARGUMENTS))
    return tmp_path / "letters" / "1"


def change(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | fields))


def test_a_loaded_network_gives_the_same_answers_to_the_last_bit(tmp_path: Path) -> None:
    network = build("implicit_resnet", (1, 6, 6), 3, ARGUMENTS)
    assert isinstance(network, ImplicitResNet)
    network.stem(torch.randn(9, 1, 6, 6))  # so that the running statistics are not the fresh ones
    network.eval()
    with new_version(tmp_path, "letters") as new:
        save(new, config(), network)
    loaded = load(tmp_path / "letters" / "1")
    assert loaded.config == config()
    inputs = torch.rand(5, 1, 6, 6)
    before = predict(network, inputs, tolerance=1e-4, max_iterations=50)
    after = predict(loaded.network, inputs, tolerance=1e-4, max_iterations=50)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.solution.iterations, after.solution.iterations)
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_a_model_is_loaded_by_name_version_or_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    with new_version(folder.parents[1], "letters") as new:
        save(new, config(), build("implicit_resnet", (1, 6, 6), 3, ARGUMENTS))
    first, second = (load(folder.with_name(number)).network.state_dict()["stem.0.weight"] for number in "12")
    assert not torch.equal(first, second)

    def loads(model: str | Path, expected: Tensor) -> bool:
        return torch.equal(load(model).network.state_dict()["stem.0.weight"], expected)

    assert loads(str(folder), first)
    monkeypatch.setenv("JFB_MODEL_STORE", str(folder.parents[1]))
    assert loads("letters", second)
    assert loads("letters/1", first)
    monkeypatch.delenv("JFB_MODEL_STORE")
    (tmp_path / "work").mkdir()
    shutil.copytree(folder.parent, tmp_path / "work" / "model_store" / "letters")
    monkeypatch.chdir(tmp_path / "work")
    assert loads("letters", second)
    assert loads("model_store/letters/1", first)
    assert loads(Path("model_store/letters/1"), first)


def test_a_model_that_does_not_exist_is_an_error_with_the_known_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JFB_MODEL_STORE", str(folder.parents[1]))
    for wrong in ("leters", "nowhere/at/all", ""):
        with pytest.raises(CheckpointError, match=rf"no model '{wrong}': must be a name in .* \(letters\), name/version, or the"):
            load(wrong)
    with pytest.raises(CheckpointError, match=r"; did you mean 'letters'\?"):
        load("leters")
    with pytest.raises(CheckpointError, match=r"^model letters has no version 7 \(available: 1\)$"):
        load("letters/7")
    for store, described in ((folder, "which has no models"), (folder / CONFIG, "which is not a folder")):
        with pytest.raises(CheckpointError, match=rf"a name in .* \({described}\), name/version"):
            find_folder("letters", store)
    with pytest.raises(TypeError, match=r"model: must be a name, name/version, or the folder of a version \(got int\)"):
        load(1)  # type: ignore[arg-type]


def test_a_loaded_model_predicts_with_its_own_defaults_unless_they_are_replaced(folder: Path) -> None:
    change(folder, serving={"solver": "anderson", "tolerance": 1e-5, "max_iterations": 40, "residual_norm": "absolute"})
    model = load(folder)
    inputs = torch.rand(7, 1, 6, 6)
    defaults: dict[str, Any] = {"tolerance": 1e-5, "max_iterations": 40, "residual_norm": ResidualNorm.ABSOLUTE}
    defaults["solver"] = Anderson()
    replaced = {"tolerance": 1e-2, "max_iterations": 3, "residual_norm": ResidualNorm.RELATIVE, "solver": Picard()}
    for change_one in ({}, *({name: value} for name, value in replaced.items())):
        expected = predict(model.network, inputs, **defaults | change_one)
        answer = model.predict(inputs, **change_one)
        assert torch.equal(answer.logits, expected.logits)
        assert torch.equal(answer.solution.iterations, expected.solution.iterations)
    named = model.predict(inputs, solver="picard").solution
    assert torch.equal(named.iterations, model.predict(inputs, solver=Picard()).solution.iterations)
    assert not torch.equal(named.iterations, model.predict(inputs).solution.iterations)
    assert torch.equal(model.predict(inputs.double().numpy()).logits, model.predict(inputs).logits)


def test_a_loaded_model_refuses_other_shapes_and_solvers_in_a_sentence(folder: Path) -> None:
    model = load(folder)
    for shape in ((6, 6), (1, 6, 6), (2, 1, 8, 8), ()):
        with pytest.raises(ValueError, match=rf"inputs: must have shape \[n, 1, 6, 6\] \(got {re.escape(str(list(shape)))}\)"):
            model.predict(torch.zeros(shape))
    with pytest.raises(
        ValueError, match=r"solver: must be one of picard, anderson \(got 'andersen'; did you mean 'anderson'\?\)"
    ):
        model.predict(torch.zeros(1, 1, 6, 6), solver="andersen")


def test_a_config_without_a_calibration_is_as_it_was_before_there_was_any_and_one_with_it_is_read_back(folder: Path) -> None:
    assert list(json.loads((folder / "config.json").read_text())["serving"]) == [
        "solver",
        "tolerance",
        "max_iterations",
        "residual_norm",
    ]
    calibration = {"safety": 1.5, "sensitivity": 2.0, "tolerance": 1e-4}
    calibration |= {"validation_inputs": 3000, "validation_differing": 2, "inputs": 1000, "differing": 0, "iterations": 6.5}
    change(folder, serving={"tolerance": 0.1, "label_calibration": calibration})
    serving = load(folder).config.serving
    assert serving.label_calibration == LabelCalibration.model_validate(calibration)
    assert serving.model_dump(mode="json")["label_calibration"] == calibration
    for field, value in {"safety": 0, "sensitivity": "steep", "inputs": 0, "kind": "guarantee"}.items():
        change(folder, serving={"label_calibration": calibration | {field: value}})
        with pytest.raises(CheckpointError, match=rf"serving\.label_calibration\.{field}: "):
            load(folder)


def test_an_unknown_format_version_is_rejected(folder: Path) -> None:
    change(folder, format_version=2)
    with pytest.raises(CheckpointError, match=r"config\.json: format_version: must be 1 \(got 2\)"):
        load(folder)


def test_an_unknown_architecture_is_rejected_with_the_known_ones(folder: Path) -> None:
    change(folder, architecture={"name": "transformer", "arguments": {}})
    with pytest.raises(CheckpointError, match=r"architecture.name: must be one of .*implicit_resnet.*got 'transformer'"):
        load(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**ARGUMENTS, "depth": 3}, r"architecture.arguments.depth: unknown argument: must be one of mean, .*got 'depth'"),
        ({**ARGUMENTS, "contraction": 1.5}, r"contraction: must be a number in \(0, 1\) \(got 1.5\)"),
        ({**ARGUMENTS, "channels": [8]}, r"stem\.0\.weight: must have shape \[8, 1, 3, 3\] \(got \[4, 1, 3, 3\]\)"),
        ({**ARGUMENTS, "channels": ["four"]}, r"arguments\.channels: .* valid integer.* \(got \['four'\]\)"),
        ({**ARGUMENTS, "mean": [1, 2]}, "mean: must be 1 or 1 numbers"),
    ],
)
def test_arguments_that_do_not_fit_are_rejected(folder: Path, arguments: dict[str, Any], message: str) -> None:
    change(folder, architecture={"name": "implicit_resnet", "arguments": arguments})
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_config_that_asks_for_a_giant_is_rejected_before_memory_is_taken(folder: Path) -> None:
    for size, message in (
        ({"channels": [10**6]}, "must give at most 268435456 parameters"),
        ({"blocks": 200_000}, "must give at most 4096 tensors of weights"),
        ({"channels": [4] * 10_000, "pool": [1] * 10_000}, "must give at most 4096 tensors of weights"),
    ):
        change(folder, architecture={"name": "implicit_resnet", "arguments": {**ARGUMENTS, **size}})
        with pytest.raises(CheckpointError, match=rf"config\.json: architecture\.arguments: {message}"):
            load(folder)


def test_weights_that_are_truncated_after_they_were_loaded_change_nothing(folder: Path) -> None:
    network = load(folder).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    (folder / "model.safetensors").write_bytes(b"")  # a mapping of the file would end this process with SIGBUS
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "I999"])
def test_weights_of_a_type_that_pytorch_does_not_have_are_rejected(folder: Path, kind: str) -> None:
    header = json.dumps({"weight": {"dtype": kind, "shape": [4], "data_offsets": [0, 2]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        load(folder)


def test_a_file_that_is_too_large_is_rejected_unread(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.truncate(2**40)  # sparse: it takes no disk
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: must have 1 to 1,074,790,400 bytes \(got 1,099,511,627,776\)"
    ):
        load(folder)
    with (folder / "config.json").open("ab") as file:
        file.truncate(2**21)
    with pytest.raises(CheckpointError, match=r"config\.json: must have 1 to 1,048,576 bytes \(got 2,097,152\)"):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"classes": []}, "classes"),
        ({"classes": ["a", "a", "b"]}, "classes: must be distinct"),
        ({"classes": [str(k) for k in range(8193)]}, "classes: List should have at most 8192 items"),
        ({"input": {"shape": [2**20, 5], "kind": "vector"}}, r"input\.shape: must have at most 4194304 numbers \(got"),
        ({"serving": {"tolerance": 0}}, "serving.tolerance"),
        ({"serving": {"solver": "newton"}}, r"serving\.solver: must be one of picard, anderson, .*got 'newton'"),
        (
            {"input": {"shape": [1, 6], "kind": "image", "low": 0, "high": 1}},
            r"input\.shape: must be \[1 or 3, height, width\] for images",
        ),
    ],
)
def test_wrong_fields_are_named(folder: Path, fields: dict[str, Any], message: str) -> None:
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_file_is_rejected_by_name(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for keep in (0, 4, len(content) // 2, len(content) - 2):
        (folder / name).write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match=name):
            load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_rejected_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_missing_foreign_and_mistyped_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({name: w for name, w in weights.items() if name != "classify.bias"}, path)
    with pytest.raises(CheckpointError, match=r"classify\.bias is missing"):
        load(folder)
    save_file({**weights, "unknown": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="unknown is not part of this architecture"):
        load(folder)
    save_file({**weights, "classify.bias": weights["classify.bias"].double()}, path)
    with pytest.raises(CheckpointError, match=r"classify\.bias: must have dtype torch\.float32 \(got torch\.float64\)"):
        load(folder)


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_in_place_of_the_weights_is_rejected_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        load(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_networks_are_built_for_their_shapes_without_importing_the_compiler() -> None:
    """Which ``load`` does first; the import takes five seconds of every server's start."""
    program = """
import sys, torch
from jfb.architectures import build
with torch.device("meta"):
    for name in ("implicit_resnet", "monotone_conv", "max_propagation"):
        build(name, (3, 8, 8), 3, {})
    for name in ("implicit_mlp", "monotone_mlp"):
        build(name, (4,), 3, {})
    build("authors_resnet", (1, 28, 28), 3, {"stem": "plain"})
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & sys.modules.keys()))
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]"
