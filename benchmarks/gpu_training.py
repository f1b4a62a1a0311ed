"""Time of a training step on a device, by method: this project's gradients, the authors' program, and TorchDEQ.

As ``benchmarks/training.py``, on random images on a GPU, for the CIFAR-10 recipes' networks: untrained, and as trained in a model
store that is given. ``jfb, compiled`` has ``torch.compile`` of ``step``, and comes last, because to compile takes longer than all
others. Seconds per epoch are those of the steps alone, without optimiser and augmentation, which all methods share. TF32 is
allowed, as in training. TorchDEQ is left out if it is not installed.

    python -m benchmarks.gpu_training                               # CUDA if there is one, else the CPU
    python -m benchmarks.gpu_training --store model_store --data uoft-cs/cifar10
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

import jfb
from benchmarks.gpu_batching import show, write
from benchmarks.training import AUTHORS, OURS, PEER, Attach, Steps, authors, jfb_in_bfloat16, make_methods, ours, time_steps
from jfb import ImplicitNetwork
from jfb.architectures import build
from jfb.gradients import JFB, Jacobian, Search
from jfb.store import list_models
from training.data import read
from training.device import choose_device, now, tensor_float_32
from training.loop.compilation import compile_step
from training.recipe import Recipe, load_recipe

TRAINING_IMAGES = 47_500
"""Of CIFAR-10, without the 5 % for validation."""


COMPILED = "jfb, compiled"


class Compiled:
    """JFB with the map of one network compiled, at the first call."""

    def __init__(self) -> None:
        self.step: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, network: ImplicitNetwork, injection: Tensor, search: Search, slowest: int) -> Tensor:
        eager = network.step
        if self.step is None:
            compile_step(network)
            self.step = network.step
        network.step = self.step  # type: ignore[method-assign]
        try:
            return JFB()(network, injection, search)[0]
        finally:
            network.step = eager  # type: ignore[method-assign]


def methods(compiled: bool) -> dict[str, Attach]:
    """Return the methods to compare: the compiled one with the authors', or all others, those of TorchDEQ if it is installed."""
    if compiled:
        return {AUTHORS: authors, COMPILED: Compiled()}
    try:
        found = make_methods()
        found.pop("unrolled")
    except ImportError:
        found = {OURS: ours(JFB()), "jfb, search in bfloat16": jfb_in_bfloat16, "jacobian": ours(Jacobian()), AUTHORS: authors}
    return found


def networks(names: str, store: Path | None, device: torch.device) -> Iterator[tuple[str, Recipe, ImplicitNetwork]]:
    """Yield each recipe's network untrained, and trained if the store has it."""
    for name in names.split(","):
        recipe = load_recipe(name)
        torch.manual_seed(0)
        arguments = {"mean": 127.5, "std": 64.0, **recipe.network.arguments}
        yield f"{name}, untrained", recipe, build(recipe.network.name, (3, 32, 32), 10, arguments).to(device)
        if store and (versions := list_models(store).get(name)):
            yield name, recipe, jfb.load(store / name / str(versions[-1]), device).network


def main(
    recipes: Annotated[str, typer.Option(help="Recipes for CIFAR-10, separated by commas.")] = "cifar10,cifar10_small",
    store: Annotated[Path | None, typer.Option(help="Model store with networks that the recipes trained.")] = None,
    data: Annotated[str | None, typer.Option(help="CIFAR-10: a hub id, or a folder. Random images by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Batches.")] = 21,
    batch_size: Annotated[int | None, typer.Option(min=1, help="The recipe's by default.")] = None,
    with_compiled: Annotated[bool, typer.Option("--compiled/--no-compiled", help="Compiling takes about a minute.")] = True,
    device: Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
    out: Annotated[Path | None, typer.Option(help="CSV file to write the table to.")] = None,
) -> None:
    """Print and write a table."""
    on = choose_device(device)
    clock = partial(now, on) if on.type == "cuda" else time.process_time
    rows: list[dict[str, object]] = []
    for compiled in (False, True) if with_compiled else (False,):
        for name, recipe, network in networks(recipes, store, on):
            size = batch_size or recipe.optimisation.batch_size
            batches = [*_batches(recipe, data, size, rounds, on)]
            torch.compiler.reset()
            try:
                with tensor_float_32(on):
                    steps = time_steps(methods(compiled), network, batches, recipe.search.build(), clock)
            except RuntimeError as error:  # such as a compiler that is not installed
                if not compiled:
                    raise
                print(f"{name}: not compiled: {str(error).splitlines()[0]}")
                continue
            rows += describe(name, steps, [COMPILED] if compiled else [*steps.seconds], size)
            write(out, rows)
    show(f"Training steps, {rounds} batches", rows)


def describe(network: str, steps: Steps, methods: list[str], batch_size: int) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each of some methods."""
    for method in methods:
        taken = statistics.median(steps.seconds[method])
        yield {
            "network": network,
            "method": method,
            "ms per step": 1e3 * taken,
            "s per epoch": TRAINING_IMAGES // batch_size * taken,
            f"of {AUTHORS}": steps.ratio(method, AUTHORS),
            f"of {PEER}": steps.ratio(method, PEER) if PEER in steps.seconds else float("nan"),
            "iterations": statistics.mean(steps.iterations),
            "slowest": statistics.mean(steps.slowest),
        }


def _batches(recipe: Recipe, data: str | None, size: int, rounds: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    if data:
        from rich.console import Console

        split = read(recipe.data.model_copy(update={"source": data}), [recipe.data.train], Console()).splits[recipe.data.train]
        images, labels = split.inputs, split.labels
    else:
        images = torch.randint(256, (rounds * size, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = torch.randint(10, (rounds * size,), generator=generator)
    order = torch.randperm(len(labels), generator=generator)
    for rows in order[: rounds * size].split(size):
        yield images[rows].to(device, torch.float32), labels[rows].to(device)


if __name__ == "__main__":
    typer.run(main)
