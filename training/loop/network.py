"""Network: from a recipe to a network with random weights."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from jfb import ImplicitNetwork
from jfb.architectures import build
from jfb.config import ArchitectureSpec, InputSpec
from training.data import Split, check, measure_normalisation
from training.errors import RecipeError
from training.recipe import Recipe

Network = TypeVar("Network", bound=nn.Module)


def build_network(recipe: Recipe, spec: InputSpec, classes: int, device: torch.device) -> ImplicitNetwork:
    """Build the network that a recipe names, with random weights.

    Args:
        spec: of the inputs.
        classes: number of logits.

    Raises:
        RecipeError: for arguments that the architecture refuses.
    """
    return initialise(lambda: build(recipe.network.name, spec.shape, classes, recipe.network.arguments), recipe, spec, device)


def check_before_data(recipe: Recipe) -> None:
    """Check a recipe whole before data is read: every source and, where the shape of the inputs is known, the network.

    Raises:
        DataError: for a source that cannot be read.
        RecipeError: for a network that cannot be built, or augmentation that does not fit the inputs.
    """
    for changes in ({}, *(stage.data for stage in recipe.curriculum), *recipe.generalisation):
        shape = check(recipe.changed_data(changes))
        if shape is not None:
            assumed = _normalised(recipe, [0.0], [1.0])  # until the data is read
            build_network(assumed, InputSpec(shape=shape, kind="vector"), 2, torch.device("cpu"))
        if shape is not None and recipe.augment.symmetries and shape[1] != shape[2]:
            raise RecipeError(f"augment.symmetries: must be false for images that are not square (got {shape[1]}x{shape[2]})")


def initialise(make: Callable[[], Network], recipe: Recipe, spec: InputSpec, device: torch.device) -> Network:
    """Make a network whose random weights depend on the recipe's seed alone, and move it to a device.

    Raises:
        RecipeError: for arguments that ``make`` refuses with a TypeError or ValueError.
    """
    torch.manual_seed(recipe.optimisation.seed)
    try:
        network = make().to(device)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{recipe.name}: network: {error}") from error
    if len(spec.shape) == 3:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
    return network


def with_normalisation(recipe: Recipe, part: Split) -> Recipe:
    """Return the recipe with the mean and standard deviation of a part's inputs in the network's arguments.

    Those that the recipe gives are kept.
    """
    return _normalised(recipe, *measure_normalisation(part.inputs))


def _normalised(recipe: Recipe, mean: list[float], std: list[float]) -> Recipe:
    arguments = {"mean": [*mean], "std": [*std], **recipe.network.arguments}
    return recipe.model_copy(update={"network": ArchitectureSpec(name=recipe.network.name, arguments=arguments)})


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
