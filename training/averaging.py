"""The moving average of the weights: what a run evaluates and saves."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jfb import ImplicitNetwork
from training.neural_ode import NeuralODE


def averaging(network: ImplicitNetwork | NeuralODE, decay: float) -> AveragedModel:
    """An exponential moving average of a network's parameters and buffers, updated after each step.

    It forgets quickly at first: in step t with the decay ``(1 + t) / (10 + t)``, as long as that is the smaller one, so that the
    average is over about the last ninth of the steps. With a constant decay of 0.998 a run of 500 steps would end with an
    average of which a third are the weights it began with.

    Args:
        decay: a step, in [0, 1); 0 is no averaging.
    """

    def update(averages: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        steps = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averages, current, updates)  # type: ignore[no-untyped-call]

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
