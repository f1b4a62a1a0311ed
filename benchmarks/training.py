"""Time of one training step with this project's gradients, with TorchDEQ's, and with the method of the authors' program.

A step is: inject, search, attach a gradient, read out, cross entropy, backward to every weight; no optimiser, no data loading.
All methods have the same network, batches, initial states and tolerance, channels last in memory, and alternate in one process
on one thread. The table has medians over the rounds, of CPU time, and of the ratios within a round.

This project stops each image individually. The authors' program and TorchDEQ stop a batch when its slowest image has converged.
TorchDEQ measures residuals in L2 norms only, so it runs the number of iterations that the slowest image needs in the network's
own norm. Its other settings are its defaults: fixed-point iteration forward and, for the implicit gradient, backward, to 1e-6
in at most 40 iterations. Its phantom gradient takes 5 steps damped by 0.5, as its paper recommends; with one step, its default,
it is JFB.

Needs torchdeq, in the version of ``benchmarks/serving/constraints.txt``.

    python -m training import authors mnist_fpn.safetensors --family mnist
    python -m benchmarks.training model_store/authors_mnist/1 --data ylecun/mnist
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import jfb
from jfb import ImplicitNetwork, ResidualNorm
from jfb.architectures import build
from jfb.gradients import JFB, Gradient, Jacobian, Search, Unrolled
from training.data import read
from training.loop.network import with_normalisation
from training.recipe import DataRecipe, load_recipe

Attach = Callable[[ImplicitNetwork, Tensor, Search, int], Tensor]
"""Maps the injection, the search and the iterations of the slowest image to a state with a graph."""

FRESH = {"channels": [24, 48], "pool": [2, 2], "contraction": 0.95}
"""Arguments of a network that is not stiff and spends most of its time in the latent layer."""

PEER = "TorchDEQ, implicit"
OURS = "jfb"
AUTHORS = "authors' program"


def ours(gradient: Gradient) -> Attach:
    return lambda network, injection, search, slowest: gradient(network, injection, search)[0]


def jfb_in_bfloat16(network: ImplicitNetwork, injection: Tensor, search: Search, slowest: int) -> Tensor:
    return JFB()(network, injection, replace(search, bfloat16=True))[0]


def torchdeq(**arguments: object) -> Attach:
    from torchdeq import get_deq

    deq = get_deq(f_tol=0.0, **arguments)

    def attach(network: ImplicitNetwork, injection: Tensor, search: Search, slowest: int) -> Tensor:
        start = network.initial_state(injection).detach()
        states, _ = deq(lambda state: network.step(state, injection), start, solver_kwargs={"f_max_iter": slowest})
        return states[-1]

    return attach


def authors(network: ImplicitNetwork, injection: Tensor, search: Search, slowest: int) -> Tensor:
    """Run the forward pass of the authors' program: iterate until the slowest image has converged, then one step with a graph."""
    with torch.no_grad():
        fixed = injection.detach()
        state = previous = network.initial_state(fixed)
        for _ in range(search.max_iterations):
            previous, state = state, network.step(state, fixed)
            movement = state - previous
            if search.residual_norm == ResidualNorm.CHANNEL_MAX:
                largest = torch.max(torch.norm(movement, dim=1))
            else:
                largest = (movement.flatten(1).norm(dim=1) / state.flatten(1).norm(dim=1)).max()
            if largest <= search.tolerance:
                break
    return network.step(state, injection)


def make_methods() -> dict[str, Attach]:
    """Return all methods by name.

    Raises:
        ImportError: if torchdeq is not installed.
    """
    return {
        OURS: ours(JFB()),
        "jfb, search in bfloat16": jfb_in_bfloat16,
        "jacobian": ours(Jacobian()),
        "unrolled": ours(Unrolled()),
        AUTHORS: authors,
        "TorchDEQ, 1 step": torchdeq(),
        "TorchDEQ, phantom": torchdeq(grad=5, tau=0.5),
        PEER: torchdeq(ift=True),
    }


@dataclass
class Steps:
    """Training steps of several methods on the same batches."""

    seconds: dict[str, list[float]]
    """Of each step, by method."""
    iterations: list[float]
    """Mean of each batch."""
    slowest: list[int]
    """Of the slowest image of each batch."""

    def ratio(self, method: str, other: str) -> float:
        """Return the median, over the batches, of the ratio of two methods' times."""
        return statistics.median(a / b for a, b in zip(self.seconds[method], self.seconds[other], strict=True))


def time_steps(
    methods: dict[str, Attach],
    network: ImplicitNetwork,
    batches: list[tuple[Tensor, Tensor]],
    search: Search,
    clock: Callable[[], float] = time.process_time,
) -> Steps:
    """Time one step per batch and method, after a warm-up.

    Args:
        clock: in seconds; on a GPU it must wait for the work that is queued.
    """
    network = network.to(memory_format=torch.channels_last).train().requires_grad_(True)
    steps = Steps({name: [] for name in methods}, [], [])
    for number, (inputs, labels) in enumerate([batches[0], *batches]):
        solution = search(network, network.inject(inputs))
        slowest = int(solution.iterations.amax())
        for name in [*methods][number % len(methods) :] + [*methods][: number % len(methods)]:
            network.zero_grad()
            start = clock()
            state = methods[name](network, network.inject(inputs), search, slowest)
            F.cross_entropy(network.readout(state), labels).backward()
            taken = clock() - start
            if number:  # the first round is a warm-up
                steps.seconds[name].append(taken)
        steps.iterations.append(float(solution.iterations.float().mean()))
        steps.slowest.append(slowest)
    return steps


def measure(network: ImplicitNetwork, batches: list[tuple[Tensor, Tensor]], search: Search, title: str, console: Console) -> None:
    """Time all methods, and print a table."""
    steps = time_steps(make_methods(), network, batches, search)
    table = Table(
        "",
        "ms per step",
        f"of {PEER}",
        f"of {OURS}",
        title=f"{title}\n{len(batches)} batches of {len(batches[0][0])}, tolerance {search.tolerance:g} ({search.residual_norm})"
        f": {statistics.mean(steps.iterations):.1f} iterations per image, {statistics.mean(steps.slowest):.1f} the slowest",
    )
    for name, taken in steps.seconds.items():
        ratios = [steps.ratio(name, other) for other in (PEER, OURS)]
        table.add_row(name, f"{1000 * statistics.median(taken):.1f}", *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)


def main(
    model: Annotated[Path, typer.Argument(help="The version's folder of the authors' MNIST network.")],
    data: Annotated[str, typer.Option(help="MNIST: a hub id, or a folder.")],
    batch_size: int = 100,
    rounds: int = 21,
) -> None:
    """Print a table for the authors' trained network, which is stiff, and for two untrained ones, which are not."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console = Console()
    split = read(DataRecipe(source=data), ["train"], console).splits["train"]
    rows = torch.randperm(len(split.labels))[: batch_size * rounds].split(batch_size)
    batches = [(split.inputs[row].float(), split.labels[row]) for row in rows]

    checkpoint = jfb.load(model)
    config = checkpoint.config
    search = Search(config.serving.tolerance, config.serving.max_iterations, config.serving.residual_norm)
    measure(checkpoint.network, batches, search, "the authors' network, with their weights", console)
    recipe = load_recipe("mnist")
    for title, chosen in (
        ("two convolutions before a latent layer of 48 channels, untrained", recipe.changed({"network.arguments": FRESH})),
        ("the mnist recipe's network, untrained", recipe),
    ):
        arguments = with_normalisation(chosen, split).network.arguments
        fresh = build(chosen.network.name, config.input.shape, len(config.classes), arguments)
        measure(fresh, batches, recipe.search.build(), title, console)


if __name__ == "__main__":
    typer.run(main)
