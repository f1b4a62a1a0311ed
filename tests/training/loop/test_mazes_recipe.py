"""The shipped recipe ``mazes``, trained as users train it: its answers are reached by iterating."""

import pytest
import torch
from rich.console import Console

from jfb import predict
from training.data import load_data
from training.loop.train import train
from training.recipe import load_recipe

CPU = torch.device("cpu")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_recipe_solves_mazes_by_iterating_and_the_same_layers_once_do_not(console: Console) -> None:
    recipe, explicit = load_recipe("mazes"), load_recipe("mazes_explicit")
    assert (recipe.data, recipe.curriculum, recipe.network) == (explicit.data, explicit.curriculum, explicit.network)
    data = load_data(recipe, console)
    trained = train(recipe, data, device=CPU, console=console)
    assert trained.test.accuracy > 0.99
    assert trained.test.converged == 1
    inputs = data.test.inputs.float()
    accuracy = []
    for cap in (1, 2, 4, 8, 16, 32):
        logits = predict(trained.network, inputs, tolerance=1e-6, max_iterations=cap).logits
        accuracy.append(float((logits.argmax(1) == data.test.labels).double().mean()))
    assert accuracy == sorted(accuracy)
    assert accuracy[0] < 0.4
    assert train(explicit, data, device=CPU, console=console).test.accuracy < 0.6
