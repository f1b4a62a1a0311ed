"""Fitting learned mixing to a network: few iterations to the same fixed point, without labels."""

import math
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from jfb import ImplicitNetwork
from jfb.monotone_network import MonotoneNetwork
from jfb.norms import row_norms
from jfb.solvers import Mixing
from jfb.solvers.mixing import MAX_GAIN
from training.errors import ModelError

MAX_CHANNELS = 512
"""Of a state: A has one row and one column per channel."""
STEPS = 120
BATCH_SIZE = 48
UNROLLED = 20
"""Iterations per training step; the loss starts at ``COUNTED_FROM``."""
COUNTED_FROM = 5
LEARNING_RATE = 0.01
MAX_GRADIENT = 1.0
FIRST_GAIN, FIRST_MOMENTUM = 1.45, 0.18
MAX_SECONDS = 22.0
"""The learning rate falls with the steps or with the time, whichever is used up first."""
FLOOR = 1e-6
"""Of a residual, in sizes of its state: below it, only float32 rounding remains."""
WORST_ROWS = 0.5
"""Weight of the soft maximum over the rows of a batch."""
MAX_RATE, MIN_RATE = 0.98, 0.3
"""What the safeguard's rate may be; a network that contracts faster gains nothing from mixing anyway."""


def fit_mixing(
    network: ImplicitNetwork,
    inputs: Tensor,
    *,
    device: torch.device,
    console: Console,
    refine: Mixing | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> Mixing:
    """Fit A and b to a network by the residuals of unrolled mixing, and the safeguard's rate by those of Picard iteration.

    The loss is the mean over iterations 5 to 20, and over the rows, of ``log ‖T(u_k) − u_k‖``, plus half of a soft maximum over
    the rows at the last one. It needs neither labels nor fixed points.

    Args:
        network: in evaluation mode, on the device; its weights are left as they are.
        inputs: raw, unlabelled, shape ``[n, *input_shape]``.
        refine: coefficients to begin with, from which half of the steps and of the time suffice.
        clock: seconds, by default of processor time, so that the result does not depend on what else the machine does.

    Raises:
        ModelError: for networks that mixing is not for, and where the fit fails.
    """
    channels = check_network(network, inputs[:1].to(device, torch.float32))
    if refine is None:
        matrix, momentum = FIRST_GAIN * torch.eye(channels, device=device), torch.full((channels,), FIRST_MOMENTUM, device=device)
    else:
        matrix, momentum = refine.matrix.clone(), refine.momentum.clone()
    matrix.requires_grad_()
    momentum.requires_grad_()
    share = 1.0 if refine is None else 0.5
    optimiser = torch.optim.Adam([matrix, momentum], LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    began, used, step = clock(), 0.0, 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("fitting mixing", total=1.0)
        while used < 1:
            injection = _injection(network, inputs, generator, device)
            losses = _log_residuals(network, injection, matrix, momentum)
            loss = losses[COUNTED_FROM - 1 :].mean() + WORST_ROWS * losses[-1].logsumexp(0)
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * used)) / 2
            # Not backward(), which would leave gradients in the network's weights as well.
            matrix.grad, momentum.grad = torch.autograd.grad(loss, (matrix, momentum))
            if bool(loss.isfinite()) and bool(clip_grad_norm_([matrix, momentum], MAX_GRADIENT).isfinite()):
                optimiser.step()  # a batch in which a row diverged teaches nothing
                _keep_in_range(matrix, momentum)
            step += 1
            used = max(step / STEPS, (clock() - began) / MAX_SECONDS) / share
            progress.update(task, completed=used)
    return Mixing(matrix.detach(), momentum.detach(), picard_rate(network, inputs, device=device))


@torch.no_grad()
def picard_rate(network: ImplicitNetwork, inputs: Tensor, *, device: torch.device, rows: int = 512) -> float:
    """What a residual typically shrinks by in an iteration under Picard: the median over rows of the mean of iterations 5 to 20.

    Args:
        inputs: raw, of which some are drawn.
    """
    generator = torch.Generator().manual_seed(0)
    injection = _injection(network, inputs, generator, device, rows)
    channels = network.first_state(injection).shape[1]
    identity, zeros = torch.eye(channels, device=device), torch.zeros(channels, device=device)
    logs = _log_residuals(network, injection, identity, zeros)
    rate = float(((logs[-1] - logs[COUNTED_FROM - 1]) / (UNROLLED - COUNTED_FROM)).exp().median())
    return min(max(rate, MIN_RATE), MAX_RATE)


def check_network(network: ImplicitNetwork, inputs: Tensor) -> int:
    """The number of channels of a network's state.

    Raises:
        ModelError: for a network that has solvers of its own, whose step has no gradient, or whose state is too large.
    """
    if isinstance(network, MonotoneNetwork):
        raise ModelError(
            f"mixing is not for monotone networks: {type(network).__name__} has splitting solvers, which are faster than its step"
        )
    with torch.enable_grad():
        injection = network.inject(inputs)
        state = network.first_state(injection).detach().requires_grad_()
        if not network.step(state, injection).requires_grad:
            raise ModelError(f"mixing is fitted by gradients, and the step of {type(network).__name__} has none")
    channels = state.shape[1]
    if channels > MAX_CHANNELS:
        raise ModelError(f"the state must have at most {MAX_CHANNELS} channels to be mixed (got {channels})")
    return channels


def _injection(
    network: ImplicitNetwork, inputs: Tensor, generator: torch.Generator, device: torch.device, rows: int = BATCH_SIZE
) -> Tensor:
    chosen = torch.randint(len(inputs), (rows,), generator=generator)
    with torch.no_grad():
        return network.inject(inputs[chosen].to(device, torch.float32))


def _log_residuals(network: ImplicitNetwork, injection: Tensor, matrix: Tensor, momentum: Tensor) -> Tensor:
    """``log ‖T(u_k) − u_k‖₂`` for ``UNROLLED`` iterations without a safeguard: ``[UNROLLED, n]``."""
    point = previous = network.first_state(injection).detach()
    per_channel = momentum.view(-1, *(1,) * (point.dim() - 2))
    found = []
    for _ in range(UNROLLED):
        next_state = network.step(point, injection)
        movement = next_state - point
        floor = FLOOR * row_norms(next_state).detach().clamp_min(1e-9)
        found.append((movement.flatten(1).square().sum(1) + floor.square()).log() / 2)
        mixed = torch.nn.functional.linear(movement.movedim(1, -1), matrix).movedim(-1, 1)
        point, previous = point + mixed + per_channel * (point - previous), point
    return torch.stack(found)


@torch.no_grad()
def _keep_in_range(matrix: Tensor, momentum: Tensor) -> None:
    """What ``Mixing`` accepts."""
    momentum.clamp_(-1, 1)
    gain = torch.linalg.matrix_norm(matrix, 2)
    if bool(gain > 0.99 * MAX_GAIN):
        matrix.mul_(0.99 * MAX_GAIN / gain)
