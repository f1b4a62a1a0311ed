"""Compilation: what it changes, and when a run does it."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console

from training.data import Data, load_data
from training.errors import RecipeError
from training.loop.compilation import compiled_is_faster, resolve_compilation
from training.loop.network import build_network
from training.loop.processes import Processes
from training.loop.train import train
from training.recipe import Recipe, load_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(load_recipe("digits"), Console(quiet=True))


@pytest.fixture
def _only_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without code generation, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.slow
@pytest.mark.usefixtures("_only_traced")
def test_a_compiled_run_learns_the_same_and_publishes_a_network_that_is_not_compiled(
    quick: Recipe, digits: Data, console: Console
) -> None:
    few = replace(digits, train=digits.train[np.arange(300)], test=digits.validation)
    eager, compiled = (
        train(quick.changed({"search.compile": compile}), few, device=CPU, console=console) for compile in (False, True)
    )
    assert compiled.history[-1].train_loss == pytest.approx(eager.history[-1].train_loss, rel=1e-3)
    assert "step" not in vars(compiled.network)
    assert compiled.recipe.search.compile is True


@pytest.mark.usefixtures("_only_traced")
def test_both_maps_are_timed_with_their_backward_passes(quick: Recipe, digits: Data) -> None:
    network = build_network(quick, digits.input, 10, CPU)
    assert compiled_is_faster(network, digits.train.inputs[:4].float(), quick.search.build()) in (True, False)
    assert network.latent.weight.grad is not None


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_generated_code_learns_the_same(quick: Recipe, digits: Data, console: Console) -> None:
    eager, compiled = (
        train(quick.changed({"search.compile": compile}), digits, device=CPU, console=console) for compile in (False, True)
    )
    assert compiled.history[-1].train_loss == pytest.approx(eager.history[-1].train_loss, rel=1e-3)


def test_auto_does_not_compile_on_a_cpu_and_is_recorded(quick: Recipe, digits: Data, console: Console) -> None:
    auto = quick.changed({"search.compile": "auto"})
    resolved = resolve_compilation(auto, auto, digits, CPU, Processes(), None, console)
    assert resolved == quick
    assert "compile" not in resolved.model_dump()["search"], "snapshots of earlier releases do not have it"


def test_auto_is_what_the_interrupted_run_used(quick: Recipe, digits: Data, console: Console) -> None:
    auto = quick.changed({"search.compile": "auto"})
    snapshot = {"recipe": quick.changed({"search.compile": True}).model_dump(mode="json")}
    assert resolve_compilation(auto, auto, digits, CPU, Processes(), snapshot, console).search.compile is True


def test_auto_does_not_compile_what_is_differentiated_more_than_once(quick: Recipe, digits: Data, console: Console) -> None:
    for changes in ({"gradient": {"name": "jacobian"}}, {"optimisation.jacobian_penalty": 0.1}):
        auto = quick.changed({"search.compile": "auto", **changes})
        resolved = resolve_compilation(auto, auto, digits, torch.device("cuda"), Processes(), None, console)
        assert resolved.search.compile is False


def test_a_compiled_map_cannot_be_differentiated_more_than_once(quick: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"search\.compile: must be false or auto with a Jacobian penalty, and with other"):
        quick.changed({"search.compile": True, "gradient": {"name": "jacobian"}})
