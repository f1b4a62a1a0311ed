"""Architectures that installed packages or this process register, found by name as our own are."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jfb import CheckpointError, ImplicitNetwork, architectures, load, register
from jfb.architectures import ImplicitMLP, build, find
from jfb.checkpoint import save
from jfb.config import ArchitectureSpec, InputSpec, ModelConfig
from jfb.solvers import Mixing

MODULE = """
import torch
from jfb import ImplicitNetwork

class Halving(ImplicitNetwork):
    def __init__(self, input_shape, classes, *, factor=0.5):
        super().__init__()
        self.classify = torch.nn.Linear(input_shape[0], classes)
        self.factor = factor

    def inject(self, inputs):
        return inputs

    def step(self, state, injection):
        return self.factor * state + injection

    def readout(self, state):
        return self.classify(state)
"""
ENTRY_POINTS = """
[jfb.architectures]
halving = registered_networks:Halving
function = registered_networks:torch.zeros
missing = registered_networks:Doubling
implicit_mlp = registered_networks:Halving
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package as pip installs it: a module, and a folder of metadata with its entry points."""
    (tmp_path / "registered_networks.py").write_text(MODULE)
    facts = tmp_path / "registered_networks-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: registered-networks\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)


def test_an_registered_class_is_built_saved_and_loaded(tmp_path: Path) -> None:
    network = build("halving", [3], 2, {"factor": 0.25})
    config = ModelConfig(
        architecture=ArchitectureSpec(name="halving", arguments={"factor": 0.25}),
        input=InputSpec(shape=(3,), kind="vector"),
        classes=["a", "b"],
    )
    save(tmp_path, config, network)
    loaded = load(tmp_path).network
    assert type(loaded).__name__ == "Halving"
    torch.testing.assert_close(loaded.readout(torch.ones(1, 3)), network.readout(torch.ones(1, 3)))
    assert loaded.step(torch.ones(1, 3), torch.zeros(1, 3)).tolist() == [[0.25] * 3]


class Local(ImplicitNetwork):
    """As in a notebook."""

    def __init__(self, input_shape: Sequence[int], classes: int, *, factor: float = 0.5) -> None:
        super().__init__()
        self.classify = torch.nn.Linear(input_shape[0], classes)
        self.factor = factor

    def inject(self, inputs: Tensor) -> Tensor:
        return inputs

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return self.factor * state + injection

    def readout(self, state: Tensor) -> Tensor:
        return self.classify(state)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """Of the network ``Local((3,), 2, factor=0.25)`` under the name ``local``, which is not registered yet."""
    monkeypatch.setattr(architectures, "_registered", {})
    return ModelConfig(
        architecture=ArchitectureSpec(name="local", arguments={"factor": 0.25}),
        input=InputSpec(shape=(3,), kind="vector"),
        classes=["a", "b"],
    )


def test_a_class_of_this_process_is_saved_and_loaded_once_it_is_registered(config: ModelConfig, tmp_path: Path) -> None:
    network = Local((3,), 2, factor=0.25)
    with pytest.raises(CheckpointError, match=r"architecture.name: must be one of .*got 'local'"):
        save(tmp_path / "model", config, network)
    assert not (tmp_path / "model").exists()
    register("local", ImplicitMLP)
    register("local", Local)
    save(str(tmp_path / "model"), config, network)
    inputs = torch.rand(4, 3)
    answer = load(tmp_path / "model").predict(inputs)
    # u = u / 4 + d
    torch.testing.assert_close(answer.logits, network.classify(inputs / 0.75).detach(), rtol=1e-2, atol=1e-2)


def test_what_load_would_refuse_is_not_saved(config: ModelConfig, tmp_path: Path) -> None:
    register("local", Local)
    red = config.model_copy(update={"architecture": ArchitectureSpec(name="local", arguments={"colour": "red"})})
    mixing = Mixing(torch.eye(5), torch.zeros(5), 0.5)
    refused: list[tuple[str, Callable[[], object]]] = [
        (r"classify.weight: must have shape \[2, 3\] \(got \[5, 3\]\)", lambda: save(folder, config, Local((3,), 5))),
        (r"classify.weight: must have dtype torch.float32 \(got torch.float64\)", lambda: save(folder, config, network.double())),
        (r"must name the network's class, ImplicitMLP \(got 'local', which is Local\)",
         lambda: save(folder, config, ImplicitMLP((3,), 2))),
        (r"architecture.arguments.colour: unknown argument", lambda: save(folder, red, network)),
        (r"matrix: must have as many rows as the state has channels, 3 \(got 5\)",
         lambda: save(folder, config, Local((3,), 2), mixing)),
    ]  # fmt: skip
    folder, network = tmp_path / "model", Local((3,), 2)
    for message, call in refused:
        with pytest.raises(CheckpointError, match=message):
            call()
        assert not folder.exists()


def test_only_networks_are_registered_and_only_under_free_names(config: ModelConfig) -> None:
    for name in ("implicit_mlp", "neural_ode", "onnx", ""):
        with pytest.raises(ValueError, match=rf"name: must not be empty or one of .*implicit_mlp.* \(got '{name}'\)"):
            register(name, Local)
    with pytest.raises(TypeError, match=r"network: must be a subclass of jfb.ImplicitNetwork \(got <class .*Linear'>\)"):
        register("linear", torch.nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="network: must define inject, readout, step"):
        register("abstract", ImplicitNetwork)


def test_no_package_can_replace_a_built_in_architecture() -> None:
    assert find("implicit_mlp") is ImplicitMLP


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("doubling", "must be one of authors_resnet, function, halving, implicit_mlp.*got 'doubling'"),
        ("missing", "'missing' is registered as registered_networks:Doubling, which cannot be imported"),
        ("function", "must be a subclass of jfb.ImplicitNetwork"),
        (
            "registered_networks:Halving",
            "got 'registered_networks:Halving'",
        ),  # a config cannot name what is not registered
    ],
)
def test_what_is_no_architecture_is_rejected_by_name(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"architecture.name: .*{problem}"):
        build(name, [3], 2, {})


def test_arguments_of_an_registered_class_are_checked() -> None:
    with pytest.raises(ValueError, match=r"architecture.arguments.colour: unknown argument"):
        build("halving", [3], 2, {"colour": "red"})
    assert issubclass(find("halving"), ImplicitNetwork)
