"""Precision: choose float32 or bfloat16 for the search by timing both on this device."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from jfb import ImplicitNetwork
from jfb.gradients import Search
from training.data import Data
from training.device import now, tensor_float_32
from training.loop.network import build_network
from training.loop.processes import Processes
from training.loop.run_folder import Snapshot
from training.recipe import Recipe

ROUNDS = 5
MAX_TIME_RATIO = 0.85
"""Another way is chosen if it takes at most this fraction of the usual one's time; noise should not decide a near tie."""


def resolve_precision(
    recipe: Recipe, measured: Recipe, data: Data, device: torch.device, processes: Processes, snapshot: Snapshot | None
) -> Recipe:
    """Return the recipe with ``auto`` precision replaced by that of the resumed run, or by the faster one on this device."""
    if recipe.search.precision != "auto":
        return recipe
    if snapshot:
        return recipe.changed({"search.precision": snapshot["recipe"]["search"].get("precision", "float32")})
    network = build_network(measured, data.input, len(data.classes), device)
    inputs = data.train.inputs[: recipe.optimisation.batch_size].to(device, torch.float32)
    faster = bfloat16_is_faster(network, inputs, recipe.search.build())
    return recipe.changed({"search.precision": "bfloat16" if processes.decide(faster, device) else "float32"})


@torch.no_grad()
def bfloat16_is_faster(network: ImplicitNetwork, inputs: Tensor, search: Search) -> bool:
    """Search for the fixed points of a batch in both precisions, in turn, and compare the shortest times.

    A tolerance that bfloat16 cannot resolve costs iterations, up to the cap, which counts against it.

    Args:
        network: on its device; the batch statistics of ``inject`` change.
        inputs: ``[n, *input_shape]``, a training batch.
        search: its own precision is ignored.
    """
    injection = network.inject(inputs)
    usual, other = (partial(replace(search, bfloat16=bfloat16), network, injection) for bfloat16 in (False, True))
    return is_faster(other, usual, inputs.device)


def is_faster(other: Callable[[], object], usual: Callable[[], object], device: torch.device) -> bool:
    """Run two ways of doing the same in turn, as in training, and compare the shortest times: ``MAX_TIME_RATIO``."""
    seconds = {usual: float("inf"), other: float("inf")}
    with tensor_float_32(device):
        for _ in range(ROUNDS + 1):
            for run in seconds:
                started = now(device)
                run()
                seconds[run] = min(seconds[run], now(device) - started)
    return seconds[other] <= MAX_TIME_RATIO * seconds[usual]
