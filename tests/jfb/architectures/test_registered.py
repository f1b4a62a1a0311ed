"""Architectures that installed packages register, found by name as our own are."""

from pathlib import Path

import pytest
import torch

from jfb import ImplicitNetwork, load
from jfb.architectures import ImplicitMLP, build, find
from jfb.checkpoint import save
from jfb.config import ArchitectureSpec, InputSpec, ModelConfig

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
    with pytest.raises(ValueError, match=r"architecture\.arguments: halving: .*colour"):
        build("halving", [3], 2, {"colour": "red"})
    assert issubclass(find("halving"), ImplicitNetwork)
