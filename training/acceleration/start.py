"""Training a learned start: a guess of the fixed point, from fixed points of unlabelled inputs."""

import math
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from jfb import ImplicitNetwork, solve
from jfb.config import LearnedStartSpec, Serving
from jfb.learned_start import LearnedStart
from jfb.solvers import Solver
from training.errors import ModelError

BOTTLENECK = 128
MAX_NUMBERS = 2**15
"""Of an injection and of a state: the two matrices have a row or a column for each."""
MAX_FIXED_POINTS_NUMBERS = 2**26
"""Of all states that are learned from, which are kept in memory."""
MAX_FIXED_POINTS = 20_000
FIXED_POINT_SECONDS = 10.0
TRAINING_SECONDS = 20.0
MAX_STEPS = 3000
BATCH_SIZE = 64
LEARNING_RATE = 0.002


def fit_start(
    network: ImplicitNetwork,
    serving: Serving,
    inputs: Tensor,
    solver: Solver,
    *,
    device: torch.device,
    console: Console,
    seed: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> tuple[LearnedStart, LearnedStartSpec]:
    """Train a start by the squared distance of its guesses from the fixed points of inputs, in float32.

    Args:
        network: in evaluation mode, on the device; it is left as it is.
        serving: the fixed points are found with its tolerance or 1e-3, whichever is smaller, and with its cap.
        inputs: raw, unlabelled, shape ``[n, *input_shape]``.
        solver: what finds the fixed points.
        clock: seconds, of which finding the fixed points and learning from them take a limited number each.

    Raises:
        ModelError: for injections and states that are too large.
    """
    injections, fixed_points = _fixed_points(network, serving, inputs, solver, device, console, seed, clock)
    spec = LearnedStartSpec(
        injection_shape=tuple(injections.shape[1:]), state_shape=tuple(fixed_points.shape[1:]), bottleneck=BOTTLENECK
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = LearnedStart(**dict(spec)).to(device)
    scale = (fixed_points - fixed_points.mean(0)).square().sum() / len(fixed_points) + 1e-12
    optimiser = torch.optim.Adam(start.parameters(), LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    began, used, step = clock(), 0.0, 0
    with torch.enable_grad(), _progress(console) as progress:
        task = progress.add_task("training the start", total=1.0)
        while used < 1:
            rows = torch.randint(len(injections), (BATCH_SIZE,), generator=generator)
            loss = (start(injections[rows]) - fixed_points[rows]).square().sum() / (BATCH_SIZE * scale)
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * used)) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            used = max(step / MAX_STEPS, (clock() - began) / TRAINING_SECONDS)
            progress.update(task, completed=used)
    return start.eval().requires_grad_(False), spec


@torch.no_grad()
def _fixed_points(
    network: ImplicitNetwork,
    serving: Serving,
    inputs: Tensor,
    solver: Solver,
    device: torch.device,
    console: Console,
    seed: int,
    clock: Callable[[], float],
) -> tuple[Tensor, Tensor]:
    """Injections and fixed points of inputs in a random order: of all of them, or of as many as there is time and room for."""
    folded = network.folded()
    folded.learned_start = None
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:MAX_FIXED_POINTS]
    found: list[tuple[Tensor, Tensor]] = []
    began, used, numbers = clock(), 0.0, 0
    with _progress(console) as progress:
        task = progress.add_task("finding fixed points", total=1.0)
        for rows in torch.split(order, BATCH_SIZE):
            injection = folded.inject(inputs[rows].to(device, torch.float32))
            solution = solve(
                folded,
                injection,
                tolerance=min(serving.tolerance, 1e-3),
                max_iterations=serving.max_iterations,
                residual_norm=serving.residual_norm,
                solver=solver,
            )
            state, finite = solution.fixed_point, solution.residual.isfinite()
            if max(injection[0].numel(), state[0].numel()) > MAX_NUMBERS:
                raise ModelError(
                    f"injection and state must have at most {MAX_NUMBERS} numbers each for a learned start "
                    f"(got {injection[0].numel()} and {state[0].numel()})"
                )
            found.append((injection[finite].contiguous(), state[finite].contiguous()))
            numbers += injection.numel() + state.numel()
            done = len(found) * BATCH_SIZE / len(order)
            used = max(done, (clock() - began) / FIXED_POINT_SECONDS, numbers / MAX_FIXED_POINTS_NUMBERS)
            progress.update(task, completed=used)
            if used >= 1:
                break
    injections, states = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not len(states):
        raise ModelError("a learned start is trained on fixed points, and none was found: every row diverged")
    return injections, states


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
