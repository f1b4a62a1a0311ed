"""Rivals: the other implicit networks, each with the parameters, data and schedule of one recipe."""

import bisect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import nn

from jfb.architectures import build
from jfb.config import InputSpec
from training.comparison import in_fresh_process, under
from training.comparison import run as run_network
from training.data import load_data
from training.errors import RecipeError
from training.memory import peak_memory
from training.neural_ode import AUGMENTATION, NeuralODE, integrator
from training.recipe import Recipe
from training.train_neural_ode import train_neural_ode

EXACT = {"name": "jacobian", "options": {"tolerance": 1e-3, "max_iterations": 100}}
"""The exact implicit gradient, as exactly as the fixed points are found under it."""
SEARCHED = {"search.tolerance": 1e-3, "search.max_iterations": 100}
DEQ = {"gradient": EXACT, **SEARCHED, "search.solver": "anderson", "serving.solver": "anderson"}

MONOTONE = {"implicit_resnet": "monotone_conv", "implicit_mlp": "monotone_mlp"}
"""The monotone network with the stem of another one."""


@dataclass(frozen=True)
class Rival:
    """A way to make a classifier with a recipe's data and number of parameters."""

    title: str
    changes: dict[str, Any]
    """Of the recipe."""
    monotone: bool = False
    """Whether the network is the monotone one."""
    augmentation: int | None = None
    """Of a neural ODE; None for networks that iterate."""


RIVALS = {
    "jfb": Rival("JFB", {"gradient": {"name": "jfb"}}),
    "explicit": Rival("the same layers, applied once", {"gradient": {"name": "explicit"}}),
    "deq": Rival("DEQ: Anderson, exact gradient", DEQ),
    "deq_penalty": Rival("DEQ with a Jacobian penalty", {**DEQ, "optimisation.jacobian_penalty": 0.1}),
    "monotone_forward_backward": Rival(
        "monotone, forward-backward",
        {"gradient": EXACT, **SEARCHED, "search.solver": "forward_backward", "serving.solver": "forward_backward"},
        monotone=True,
    ),
    "monotone_peaceman_rachford": Rival(
        "monotone, Peaceman-Rachford",
        {"gradient": EXACT, **SEARCHED, "search.solver": "peaceman_rachford", "serving.solver": "peaceman_rachford"},
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


@dataclass(frozen=True)
class Outcome:
    """One rival, trained."""

    name: str
    parameters: int
    test_accuracy: float
    test_cost: float
    """Mean over the test inputs: iterations, or evaluations of a neural ODE's field."""
    train_cost: float
    """The same in the last epoch, forward."""
    accuracy_by_seconds: list[tuple[float, float]]
    """Seconds of training and validation accuracy, an epoch each."""
    seconds: float
    """Of training."""
    cpu_seconds: float
    """Of the whole process, on all threads, loading and testing too: what a busy machine does not stretch much."""
    memory_before: int
    """Bytes: the peak when the data was in memory and nothing had been trained."""
    memory: int
    """Bytes: the peak of the whole run."""


@dataclass(frozen=True)
class RivalsComparison:
    """All that was measured."""

    recipe: Recipe
    device: str
    threads: int
    outcomes: list[Outcome]


def compare_rivals(recipe: Recipe, names: list[str], *, device: torch.device, console: Console) -> Iterator[RivalsComparison]:
    """Train each rival, one after the other, each in a fresh process.

    Args:
        names: of ``RIVALS``.

    Yields:
        All outcomes so far, after each rival.

    Raises:
        RecipeError: for a recipe whose network is not one of ``MONOTONE``'s.
        TrainingError: what ``load_data`` and training raise, and for a neural ODE without torchdiffeq.
    """
    if recipe.network.name not in MONOTONE:
        raise RecipeError(
            f"{recipe.name}: network.name: rivals are built on the stem of {' or '.join(MONOTONE)}, got {recipe.network.name!r}"
        )
    if any(RIVALS[name].augmentation is not None for name in names):
        integrator()  # what is missing is better told before the others are trained
    data = load_data(recipe.data, console)
    spec, classes = data.input, len(data.classes)
    outcomes = []
    for name in names:
        console.print(f"[bold]{recipe.name}[/bold]: [bold]{RIVALS[name].title}[/bold]")
        train = run_iterating if RIVALS[name].augmentation is None else run_neural_ode
        outcomes.append(in_fresh_process(train, recipe, name, spec, classes, device, console.quiet))
        yield RivalsComparison(recipe, str(device), torch.get_num_threads(), [*outcomes])


def run_iterating(recipe: Recipe, name: str, spec: InputSpec, classes: int, device: torch.device, quiet: bool) -> Outcome:
    """Train a rival that iterates, and measure; call it in a fresh process."""
    chosen = rival_recipe(recipe, name, spec, classes)
    count = size_of(chosen, spec, classes)  # first, because counting loads parts of torch that are no memory of training
    trained = run_network(chosen, device, quiet)
    return Outcome(
        name=name,
        parameters=count,
        test_accuracy=trained.test.accuracy,
        test_cost=trained.test.iterations,
        train_cost=trained.history[-1].train_iterations,
        accuracy_by_seconds=[(epoch.seconds, epoch.validation_accuracy) for epoch in trained.history],
        seconds=trained.seconds,
        cpu_seconds=time.process_time(),
        memory_before=trained.memory_before,
        memory=trained.memory,
    )


def run_neural_ode(recipe: Recipe, name: str, spec: InputSpec, classes: int, device: torch.device, quiet: bool) -> Outcome:
    """Train a neural ODE, and measure; call it in a fresh process."""
    console = Console(quiet=quiet)
    data = load_data(recipe.data, console)
    arguments = {key: value for key, value in recipe.network.arguments.items() if key != "contraction"}
    arguments["augmentation"] = RIVALS[name].augmentation

    def make(fit: dict[str, Any]) -> NeuralODE:
        return NeuralODE(spec.shape, classes, **fit)

    arguments = fitted(arguments, size_of(recipe, spec, classes), make)
    before = peak_memory(device)
    trained = train_neural_ode(recipe, arguments, data, device=device, console=console)
    return Outcome(
        name=name,
        parameters=parameters(lambda: make(arguments)),
        test_accuracy=trained.test_accuracy,
        test_cost=trained.test_evaluations,
        train_cost=trained.train_evaluations,
        accuracy_by_seconds=trained.accuracy_by_seconds,
        seconds=trained.accuracy_by_seconds[-1][0],
        cpu_seconds=time.process_time(),
        memory_before=before,
        memory=peak_memory(device),
    )


def rival_recipe(recipe: Recipe, name: str, spec: InputSpec, classes: int) -> Recipe:
    """The recipe of a rival that iterates: the given one with the rival's changes, and as wide as the budget allows."""
    rival = RIVALS[name]
    changes = {**rival.changes}
    if changes["gradient"]["name"] == recipe.gradient.name:
        changes.pop("gradient")  # the recipe's own options are kept
    if rival.monotone:
        network = MONOTONE[recipe.network.name]
        arguments = {key: value for key, value in recipe.network.arguments.items() if key != "contraction"}
        arguments = fitted(arguments, size_of(recipe, spec, classes), lambda fit: build(network, spec.shape, classes, fit))
        changes["network"] = {"name": network, "arguments": arguments}
    changed = recipe.changed(changes)
    return under(changed, "explicit") if changed.gradient.name == "explicit" else changed


def size_of(recipe: Recipe, spec: InputSpec, classes: int) -> int:
    """How many parameters the recipe's network has."""
    return parameters(lambda: build(recipe.network.name, spec.shape, classes, recipe.network.arguments))


def parameters(make: Callable[[], nn.Module]) -> int:
    """How many parameters a network has, without making them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def fitted(arguments: dict[str, Any], budget: int, make: Callable[[dict[str, Any]], nn.Module]) -> dict[str, Any]:
    """Change ``channels`` (all by one factor) or ``width`` so that the number of parameters is nearest to the budget.

    Args:
        make: builds the network from arguments.
    """
    base = arguments.get("channels", [arguments.get("width", 64)])
    last = base[-1]

    def scaled(wanted: int) -> dict[str, Any]:
        widths = [max(1, round(channels * wanted / last)) for channels in base[:-1]] + [wanted]
        return {**arguments, "channels": widths} if "channels" in arguments else {**arguments, "width": wanted}

    def size(wanted: int) -> int:
        return parameters(lambda: make(scaled(wanted)))

    enough = bisect.bisect_left(range(1, 4 * last), budget, key=size) + 1  # the narrowest with at least as many
    return scaled(min((max(enough - 1, 1), enough), key=lambda wanted: abs(size(wanted) - budget)))
