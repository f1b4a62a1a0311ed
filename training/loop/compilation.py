"""Compilation: torch.compile of the fixed-point map in training, where it is measured to be faster."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from torch import Tensor

from jfb import ImplicitNetwork
from jfb.gradients import JFB, Search
from training.data import Data
from training.loop.network import build_network
from training.loop.precision import is_faster
from training.loop.processes import Processes
from training.loop.run_folder import Snapshot
from training.recipe import Recipe


def resolve_compilation(
    recipe: Recipe,
    measured: Recipe,
    data: Data,
    device: torch.device,
    processes: Processes,
    snapshot: Snapshot | None,
    console: Console,
) -> Recipe:
    """Return the recipe with ``search.compile`` resolved from ``auto``: as in the resumed run, or what is faster on this device.

    It stays off on CPUs, where compiling takes longer than it saves, and for gradients that a compiled map does not have.
    """
    if recipe.search.compile != "auto":
        return recipe
    if snapshot:
        return recipe.changed({"search.compile": snapshot["recipe"]["search"].get("compile", False)})
    if device.type == "cpu" or not recipe.can_compile:
        return recipe.changed({"search.compile": False})
    network = build_network(measured, data.input, len(data.classes), device)
    inputs = processes.part(data.train.inputs[: recipe.optimisation.batch_size]).to(device, torch.float32)
    faster = False
    try:
        with console.status("compiling the network"):
            faster = compiled_is_faster(network, inputs, recipe.search.build())
    except RuntimeError as error:  # such as a compiler that is not installed
        console.print(f"not compiled: {str(error).splitlines()[0]}", style="yellow", soft_wrap=True)
    torch.compiler.reset()  # the graphs of this network count towards a limit
    return recipe.changed({"search.compile": processes.decide(faster, device)})


def compile_step(network: ImplicitNetwork) -> None:
    """Compile ``step`` of a network, in place: its copies are not compiled, and must have been made before."""
    # The compiler looks at the gradients of its inputs, and the injection is not a leaf.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf Tensor", UserWarning)
    network.step = torch.compile(network.step)  # type: ignore[method-assign]


def compiled_is_faster(network: ImplicitNetwork, inputs: Tensor, search: Search) -> bool:
    """Take JFB steps, without an optimiser, with the eager and the compiled map in turn, and compare the shortest times.

    Takes as long as compiling: about a minute.

    Args:
        network: on its device and for this alone: it is compiled, and its batch statistics change.
        inputs: ``[n, *input_shape]``, a training batch.
    """
    network.train()
    eager = network.step
    compile_step(network)

    def learn(step: Callable[[Tensor, Tensor], Tensor]) -> None:
        network.step = step  # type: ignore[method-assign, assignment]
        state, _ = JFB()(network, network.inject(inputs), search)
        torch.autograd.backward(network.readout(state).sum())

    return is_faster(partial(learn, network.step), partial(learn, eager), inputs.device)
