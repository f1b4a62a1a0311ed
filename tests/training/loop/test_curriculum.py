"""A curriculum: which data an epoch learns from, and what a recipe may say about it."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from jfb import ImplicitNetwork
from tests.training.loop.test_resume import assert_equal, interrupt_after
from training.data import load_data
from training.errors import DataError, RecipeError
from training.loop.run_folder import RunFolder
from training.loop.train import train
from training.recipe import Recipe, load_recipe

CPU = torch.device("cpu")


@pytest.fixture
def brief() -> Recipe:
    """Stages of 2, 1 and 1 epochs on mazes of sizes 3, 4 and 5; 45, 45 and 36 training mazes."""
    return load_recipe("mazes").changed(
        {
            "data.arguments": {"size": 5, "train": 40, "test": 20},
            "curriculum": [
                {"epochs": 2, "data": {"arguments": {"size": 3, "train": 50}}},
                {"data": {"arguments": {"size": 4, "train": 50}}},
            ],
            "generalisation": [],
            "network.arguments": {"channels": 4, "features": 5},
            "optimisation.batch_size": 9,
        }
    )


def test_each_epoch_learns_from_the_data_of_its_stage_and_all_are_validated_on_the_recipes_own(
    brief: Recipe, console: Console
) -> None:
    data = load_data(brief, console)
    assert [tuple(part.inputs.shape) for part in data.curriculum] == [(45, 3, 5, 5), (45, 3, 7, 7)]
    assert data.train.inputs.shape == (36, 3, 9, 9)
    sides: list[int] = []

    def note(network: ImplicitNetwork, inputs: Tensor, labels: Tensor) -> None:
        sides.append(inputs.shape[-1])

    trained = train(brief, data, device=CPU, console=console, before_step=note)
    assert sides == [5] * 10 + [7] * 5 + [9] * 4
    assert len(trained.history) == 4
    rates = [epoch.learning_rate for epoch in trained.history]
    assert rates[0] > rates[1] > rates[2] > rates[3] == pytest.approx(0, abs=1e-9), "one schedule over all stages"


def test_a_run_interrupted_in_any_stage_gives_the_same_weights(brief: Recipe, console: Console, tmp_path: Path) -> None:
    data = load_data(brief, console)
    whole = train(brief, data, device=CPU, console=console)
    folder = RunFolder(tmp_path, 0.0)
    for steps in (3, 9, 4):  # within the first stage, within the second, within the last
        interrupt_after(brief, data, folder, steps)
    assert_equal(train(brief, data, device=CPU, console=console, folder=folder), whole)


def test_a_network_that_does_not_take_a_stages_inputs_is_rejected_before_it_trains(brief: Recipe, console: Console) -> None:
    recipe = brief.changed({"network": {"name": "implicit_resnet", "arguments": {"channels": [4]}}})
    with pytest.raises(RecipeError, match=r"curriculum.0: inputs must have the shape \[3, 9, 9\], because implicit_resnet"):
        train(recipe, load_data(recipe, console), device=CPU, console=console)
    averaging = recipe.changed({"network.arguments": {"channels": [4], "average": True}})
    train(averaging, load_data(averaging, console), device=CPU, console=console)


def test_data_without_the_recipes_stages_is_rejected(brief: Recipe, console: Console) -> None:
    data = load_data(brief.changed({"curriculum": []}), console)
    with pytest.raises(RecipeError, match=r"curriculum: the data must have 2 stages \(got 0\)"):
        train(brief, data, device=CPU, console=console)


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ({"epochs": 0, "data": {}}, r"curriculum.0.epochs: must be greater than or equal to 1 \(got 0\)"),
        ({"epochs": 1}, "curriculum.0.data: is required"),
        ({"data": {"sauce": "mazes"}}, "curriculum.0.data: sauce: unknown key"),
        ({"data": {"arguments": 3}}, "curriculum.0.data: arguments: must be a valid dictionary"),
        ({"data": {}, "epoch": 1}, "curriculum.0.epoch: unknown key: .*epochs"),
    ],
)
def test_what_a_stage_may_not_say_is_named(brief: Recipe, stage: dict[str, object], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        brief.changed({"curriculum": [stage]})


def test_other_test_parts_have_their_own_size_and_must_fit_the_network(brief: Recipe, console: Console) -> None:
    recipe = brief.changed({"curriculum": [], "generalisation": [{"arguments": {"size": 6, "test": 7}}]})
    data = load_data(recipe, console)
    assert [tuple(part.inputs.shape) for part in data.generalisation] == [(7, 3, 11, 11)]
    assert data.test.inputs.shape == (20, 3, 9, 9)
    fixed = recipe.changed({"network": {"name": "implicit_resnet", "arguments": {"channels": [4]}}})
    with pytest.raises(RecipeError, match=r"generalisation.0: inputs must have the shape \[3, 9, 9\], because implicit_resnet"):
        train(fixed, data, device=CPU, console=console)
    with pytest.raises(RecipeError, match=r"generalisation\.0: sauce: unknown key"):
        brief.changed({"generalisation": [{"sauce": "mazes"}]})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data.arguments.size": 2}, r"data.arguments.size: must be greater than or equal to 3 \(got 2\)"),
        ({"data.arguments.sizes": 8}, "data.arguments.sizes"),
        ({"data.train": "training"}, "data: mazes: split: must be one of train, test"),
        ({"data.source": "sklearn/digits", "data.test": 0.2, "curriculum": []}, "data.arguments: only mazes takes arguments"),
    ],
)
def test_what_the_source_does_not_take_is_named(
    brief: Recipe, console: Console, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        load_data(brief.changed(changes), console)


def test_parts_keep_their_difficulty_and_share_no_maze(brief: Recipe, console: Console) -> None:
    data = load_data(brief, console)
    assert data.classes == ["red", "green", "blue", "yellow"]
    for part in (data.train, data.validation, data.test):
        assert set(part.difficulty) == {"path_length", "flood_depth"}
        assert all(len(column) == len(part.labels) for column in part.difficulty.values())
        assert (part.difficulty["path_length"] <= part.difficulty["flood_depth"]).all()
    images = [image.numpy().tobytes() for part in (data.train, data.validation, data.test) for image in part.inputs]
    assert len(set(images)) == 60


def test_gradients_larger_than_the_limit_are_scaled_down_to_it(brief: Recipe, console: Console) -> None:
    data = load_data(brief.changed({"curriculum": []}), console)
    norms = []
    for limit in (0.0, 1e-3):
        recipe = brief.changed({"curriculum": [], "optimisation.max_gradient_norm": limit})
        seen: list[float] = []

        def note(network: ImplicitNetwork, inputs: Tensor, labels: Tensor, seen: list[float] = seen) -> None:
            grads = [p.grad for p in network.parameters() if p.grad is not None]  # of the step before
            if grads:
                seen.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

        train(recipe, data, device=CPU, console=console, before_step=note)
        norms.append(seen)
    assert min(norms[0]) > 1e-3
    assert norms[1] == pytest.approx([1e-3] * 3, rel=1e-2)
