"""The table of rivals, and the recipe of each: other networks with the data, schedule and size of a recipe's network."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jfb.config import ArchitectureSpec, InputSpec
from training.comparison.gradients import with_gradient
from training.loop.network import build_network, count_parameters
from training.recipe import Recipe
from training.rivals.neural_ode import AUGMENTATION

CPU = torch.device("cpu")

EXACT = {"name": "jacobian", "options": {"tolerance": 1e-3, "max_iterations": 100}}
"""The exact implicit gradient, with the tolerance of the fixed points."""
SEARCH = {"search.tolerance": 1e-3, "search.max_iterations": 100}
DEQ = {"gradient": EXACT, **SEARCH, "search.solver": "anderson", "serving.solver": "anderson"}

MONOTONE = {"implicit_resnet": "monotone_conv", "implicit_mlp": "monotone_mlp"}
"""The monotone network that has the same stem as another network."""


@dataclass(frozen=True)
class Rival:
    """A kind of network and how it is trained."""

    title: str
    changes: dict[str, Any]
    """To the recipe."""
    monotone: bool = False
    """Whether the network is monotone."""
    augmentation: int | None = None
    """Of a neural ODE; None for other networks."""


RIVALS = {
    "jfb": Rival("JFB", {"gradient": {"name": "jfb"}}),
    "explicit": Rival("the same layers, applied once", {"gradient": {"name": "explicit"}}),
    "deq": Rival("DEQ: Anderson, exact gradient", DEQ),
    "deq_penalty": Rival("DEQ with a Jacobian penalty", {**DEQ, "optimisation.jacobian_penalty": 0.1}),
    "monotone_forward_backward": Rival(
        "monotone, forward-backward",
        {"gradient": EXACT, **SEARCH, "search.solver": "forward_backward", "serving.solver": "forward_backward"},
        monotone=True,
    ),
    "monotone_peaceman_rachford": Rival(
        "monotone, Peaceman-Rachford",
        {"gradient": EXACT, **SEARCH, "search.solver": "peaceman_rachford", "serving.solver": "peaceman_rachford"},
        monotone=True,
    ),
    "monotone_jfb": Rival(
        "monotone, Peaceman-Rachford, JFB",
        {"gradient": {"name": "jfb"}, "search.solver": "peaceman_rachford", "serving.solver": "peaceman_rachford"},
        monotone=True,
    ),
    "neural_ode": Rival("neural ODE", {}, augmentation=0),
    "augmented_neural_ode": Rival("augmented neural ODE", {}, augmentation=AUGMENTATION),
}


def rival_recipe(recipe: Recipe, name: str, spec: InputSpec, classes: int) -> Recipe:
    """Return the recipe of a rival that iterates: the given one with the rival's changes, at the same number of parameters."""
    rival = RIVALS[name]
    changes = {**rival.changes}
    if changes["gradient"]["name"] == recipe.gradient.name:
        changes.pop("gradient")  # keep the recipe's own options
    if rival.monotone:
        monotone = MONOTONE[recipe.network.name]

        def make(arguments: dict[str, Any]) -> nn.Module:
            network = ArchitectureSpec(name=monotone, arguments=arguments)
            return build_network(recipe.model_copy(update={"network": network}), spec, classes, CPU)

        arguments = {key: value for key, value in recipe.network.arguments.items() if key != "contraction"}
        changes["network"] = {"name": monotone, "arguments": fit_width(arguments, network_size(recipe, spec, classes), make)}
        changes["serving.accelerate"] = False  # it has solvers of its own, which split the map
    changed = recipe.changed(changes | {"serving.export": False})  # a map that splits is not computed as graphs
    return with_gradient(changed, "explicit") if changed.gradient.name == "explicit" else changed


def network_size(recipe: Recipe, spec: InputSpec, classes: int) -> int:
    """Return the number of parameters of the recipe's network."""
    return count_parameters(build_network(recipe, spec, classes, CPU))


def fit_width(arguments: dict[str, Any], size: int, make: Callable[[dict[str, Any]], nn.Module]) -> dict[str, Any]:
    """Scale ``channels`` (all by one factor) or ``width`` so that the number of parameters is nearest to ``size``.

    Args:
        make: builds the network from its arguments.
    """
    base = arguments.get("channels", [arguments.get("width", 64)])
    last = base[-1]

    def scaled(width: int) -> dict[str, Any]:
        widths = [max(1, round(channels * width / last)) for channels in base[:-1]] + [width]
        return {**arguments, "channels": widths} if "channels" in arguments else {**arguments, "width": width}

    def parameters(width: int) -> int:
        return count_parameters(make(scaled(width)))

    wide_enough = bisect.bisect_left(range(1, 4 * last), size, key=parameters) + 1
    return scaled(min((max(wide_enough - 1, 1), wide_enough), key=lambda width: abs(parameters(width) - size)))
