"""The loop: what it learns, what is reproducible, and which errors stop it."""

import math

import pytest
import torch
from rich.console import Console

from jfb.gradients import GRADIENTS
from training.data import Data, Split, load_data
from training.errors import NonFiniteLossError, RecipeError
from training.loop.train import Trained, train
from training.recipe import Recipe, load_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(load_recipe("digits"), Console(quiet=True))


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return trained.network.state_dict()


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(
    quick: Recipe, digits: Data, console: Console
) -> None:
    one, two = (train(quick, digits, device=CPU, console=console) for _ in range(2))
    other = train(quick.changed({"optimisation.seed": 1}), digits, device=CPU, console=console)
    assert all(torch.equal(tensor, weights(two)[name]) for name, tensor in weights(one).items())
    assert not all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_gradient_learns(gradient: str, quick: Recipe, digits: Data, console: Console) -> None:
    recipe = quick.changed({"gradient": {"name": gradient}, "optimisation.epochs": 2, "optimisation.averaging": 0.0})
    trained = train(recipe, digits, device=CPU, console=console)
    assert trained.history[-1].train_loss < 0.8 * trained.history[0].train_loss
    assert trained.test.accuracy > 0.5


def test_a_search_in_bfloat16_learns_as_well(quick: Recipe, digits: Data, console: Console) -> None:
    recipe = quick.changed({"optimisation.epochs": 3, "optimisation.averaging": 0.0, "network.arguments.channels": [16]})
    runs = {
        precision: train(recipe.changed({"search.precision": precision}), digits, device=CPU, console=console)
        for precision in ("float32", "bfloat16")
    }
    assert runs["bfloat16"].history[-1].train_loss == pytest.approx(runs["float32"].history[-1].train_loss, rel=0.1)
    assert runs["bfloat16"].history != runs["float32"].history, "the precision was not changed"


def test_auto_precision_is_resolved_and_recorded(quick: Recipe, digits: Data, console: Console) -> None:
    trained = train(quick.changed({"search.precision": "auto"}), digits, device=CPU, console=console)
    assert trained.recipe.search.precision in ("float32", "bfloat16")
    assert trained.recipe.changed({"search.precision": "auto"}) == quick.changed({"search.precision": "auto"})


def test_averaged_weights_still_contract(quick: Recipe, digits: Data, console: Console) -> None:
    recipe = quick.changed({"optimisation.learning_rate": 0.05, "optimisation.epochs": 2, "optimisation.averaging": 0.95})
    trained = train(recipe, digits, device=CPU, console=console)
    assert trained.contraction_bound is not None
    assert trained.contraction_factor <= trained.contraction_bound <= 0.9 + 1e-5


def test_normalisation_is_measured_on_the_training_part_unless_the_recipe_gives_it(
    quick: Recipe, digits: Data, console: Console
) -> None:
    measured = train(quick, digits, device=CPU, console=console).architecture.arguments
    assert measured["mean"] == [pytest.approx(float(digits.train.inputs.double().mean()), rel=1e-5)]
    given = quick.changed({"network.arguments": {"channels": [8], "mean": 8.0, "std": 4.0}})
    assert train(given, digits, device=CPU, console=console).architecture.arguments == given.network.arguments


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_change(quick: Recipe, digits: Data, console: Console) -> None:
    # Steps of 1e30 overflow the stem, which nothing constrains, within a few batches.
    recipe = quick.changed({"optimisation.learning_rate": 1e30})
    with pytest.raises(
        NonFiniteLossError, match=r"epoch 1, step \d+: the loss is .*lower optimisation.learning_rate \(now 1e\+30\)"
    ):
        train(recipe, digits, device=CPU, console=console)


def test_inputs_that_are_not_finite_have_an_error_of_their_own(quick: Recipe, digits: Data, console: Console) -> None:
    spoilt = digits.train.inputs.float().index_fill(0, torch.arange(100), math.inf)
    recipe = quick.changed({"network.arguments": {"channels": [8], "mean": 8.0, "std": 4.0}})
    data = Data(Split(spoilt, digits.train.labels), digits.validation, digits.test, digits.classes, digits.input)
    with pytest.raises(NonFiniteLossError, match="inputs of this batch are not finite: fix the data"):
        train(recipe, data, device=CPU, console=console)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"channels": 8}, r"digits: network\.arguments\.channels: must be "),
        ({"chanels": [8]}, r"digits: network\.arguments\.chanels: unknown argument: must be one of .*did you mean 'channels'"),
        ({"channels": [8], "pool": [20]}, r"digits: network: "),
    ],
)
def test_arguments_that_the_architecture_rejects_are_an_error_of_the_recipe(
    arguments: dict[str, object], error: str, quick: Recipe, digits: Data, console: Console
) -> None:
    with pytest.raises(RecipeError, match=error):
        train(quick.changed({"network.arguments": arguments}), digits, device=CPU, console=console)
