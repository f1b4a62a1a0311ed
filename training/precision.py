"""Precision: whether a search for fixed points is faster in bfloat16 on this device. Found out by trying, not by its name."""

import time
from dataclasses import replace

import torch
from torch import Tensor

from jfb import ImplicitNetwork
from jfb.gradients import Search

ROUNDS = 5
WORTH_IT = 0.85
"""bfloat16 is worth it where it takes at most this share of float32's time: noise should not decide a near tie."""


@torch.no_grad()
def bfloat16_pays(network: ImplicitNetwork, inputs: Tensor, search: Search) -> bool:
    """Search for the fixed points of a batch in both precisions, in turn, and compare the shortest times.

    A tolerance that bfloat16 cannot resolve costs iterations, up to the cap, and so counts against it.

    Args:
        network: on its device; batch statistics of ``inject`` move.
        inputs: ``[n, *input_shape]``, as many as a batch of training.
        search: its own precision does not matter.
    """
    injection = network.inject(inputs)
    seconds = {False: float("inf"), True: float("inf")}
    for _ in range(ROUNDS + 1):
        for bfloat16 in seconds:
            began = _now(inputs.device)
            replace(search, bfloat16=bfloat16)(network, injection)
            seconds[bfloat16] = min(seconds[bfloat16], _now(inputs.device) - began)
    return seconds[True] <= WORTH_IT * seconds[False]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
