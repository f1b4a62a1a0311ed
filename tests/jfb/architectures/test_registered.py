"""Architectures that installed packages announce, found by name as our own are."""

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
ANNOUNCED = """
[jfb.architectures]
halving = announced_networks:Halving
function = announced_networks:torch.zeros
missing = announced_networks:Doubling
implicit_mlp = announced_networks:Halving
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package as pip leaves it: a module, and beside it what it announces."""
    (tmp_path / "announced_networks.py").write_text(MODULE)
    facts = tmp_path / "announced_networks-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: announced-networks\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ANNOUNCED)
    monkeypatch.syspath_prepend(tmp_path)


def test_an_announced_class_is_built_saved_and_loaded(tmp_path: Path) -> None:
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


def test_nobody_can_announce_another_class_by_one_of_our_names() -> None:
    assert find("implicit_mlp") is ImplicitMLP


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("doubling", "unknown architecture 'doubling', expected one of authors_resnet, function, halving, implicit_mlp"),
        ("missing", "'missing' is announced as announced_networks:Doubling, which cannot be loaded"),
        ("function", "expected a subclass of jfb.ImplicitNetwork"),
        ("announced_networks:Halving", "unknown architecture"),  # a config cannot name what is not announced
    ],
)
def test_what_is_no_architecture_is_refused_by_name(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"architecture.name: .*{problem}"):
        build(name, [3], 2, {})


def test_arguments_of_an_announced_class_are_checked() -> None:
    with pytest.raises(ValueError, match=r"architecture\.arguments: halving: .*colour"):
        build("halving", [3], 2, {"colour": "red"})
    assert issubclass(find("halving"), ImplicitNetwork)
