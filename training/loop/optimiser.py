"""Optimiser: AdamW, the schedule of its learning rate, and the average of the weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.recipe import OptimisationRecipe


def build_optimiser(network: nn.Module, settings: OptimisationRecipe, steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Return AdamW, with weight decay of matrices and kernels only, and its schedule.

    Args:
        steps: of the whole run.
    """
    kernels = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate)
    return optimiser, LambdaLR(optimiser, lambda step: learning_rate_factor(step / steps, settings.warm_up))


def learning_rate_factor(progress: float, warm_up: float) -> float:
    """Return the factor on the learning rate: linear warm-up, then cosine decay to zero.

    Args:
        progress: fraction of the run, in [0, 1].
        warm_up: fraction of the run in which the rate rises, in (0, 1).
    """
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up  # a rate of zero would waste the first step
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warm_up) / (1 - warm_up))


def average_weights(network: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average (EMA) of a network's parameters and buffers, to be updated after each step.

    The EMA decay is warmed up: in step t it is ``min(decay, (1 + t) / (10 + t))``, so that early on the average covers about
    the last ninth of the steps. With a constant decay of 0.998, a third of the average after 500 steps would be the initial
    weights.

    Args:
        decay: per step, in [0, 1); 0 is no averaging.
    """

    def update(averages: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        steps = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averages, current, updates)  # type: ignore[no-untyped-call]

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
