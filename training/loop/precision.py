"""Precision: choose float32 or bfloat16 for the search by timing both on this device."""

from dataclasses import replace

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
"""bfloat16 is chosen if it takes at most this fraction of float32's time; noise should not decide a near tie."""


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
    # The first process decides for all: they must agree, and their clocks do not.
    votes = processes.total(torch.tensor(float(faster and processes.first), device=device))
    return recipe.changed({"search.precision": "bfloat16" if bool(votes) else "float32"})


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
    seconds = {False: float("inf"), True: float("inf")}
    with tensor_float_32(inputs.device):  # as in training
        for _ in range(ROUNDS + 1):
            for bfloat16 in seconds:
                started = now(inputs.device)
                replace(search, bfloat16=bfloat16)(network, injection)
                seconds[bfloat16] = min(seconds[bfloat16], now(inputs.device) - started)
    return seconds[True] <= MAX_TIME_RATIO * seconds[False]
