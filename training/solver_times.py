"""Solver times: which solver answers fastest, by the clock and not by iterations."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jfb import ImplicitNetwork, ModelConfig, solve
from jfb.solvers import SOLVERS, solvers_for

ROUNDS = 5
INPUTS = 256
BATCH_SIZE = 64
"""As many rows as iterate together in a server on a CPU."""
WORTH_CHANGING_FOR = 0.9
"""Another solver must take at most this share of the time of the model's own."""


@dataclass(frozen=True)
class SolverTimes:
    """What each solver took for the same inputs."""

    tolerances: list[float]
    """At each of which the inputs were solved: the model's default, and the tightest that was evaluated."""
    microseconds: dict[str, float]
    """By solver: of one input, mean over inputs and tolerances, median over rounds."""
    iterations: dict[str, float]
    """The same, mean iterations."""
    recommended: str
    """The fastest, if it is clearly faster than the model's own."""


@torch.no_grad()
def time_solvers(
    network: ImplicitNetwork,
    config: ModelConfig,
    inputs: Tensor,
    tightest: float,
    *,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> SolverTimes:
    """Solve the same inputs with every solver that fits the network, in turn, several times.

    Args:
        network: in evaluation mode, on the device; what is timed is a folded copy of it, as in the server.
        inputs: raw, shape ``[n, *input_shape]``; the first 256 are used.
        tightest: tolerance, beside the model's default.
        clock: seconds.
    """
    serving = config.serving
    folded = network.folded().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    injections = [folded.inject(batch.to(device, torch.float32)) for batch in torch.split(inputs[:INPUTS], BATCH_SIZE)]
    tolerances = sorted({serving.tolerance, tightest}, reverse=True)
    names = [name for name in solvers_for(type(network)) if name in solvers_for(type(folded))]
    iterations: dict[str, float] = {}

    def once(name: str) -> float:
        began = clock()
        counts = [
            solve(
                folded,
                injection,
                tolerance=tolerance,
                max_iterations=serving.max_iterations,
                residual_norm=serving.residual_norm,
                solver=SOLVERS[name](),
            ).iterations
            for tolerance in tolerances
            for injection in injections
        ]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = clock() - began
        iterations[name] = float(torch.cat(counts).double().mean())
        return seconds

    for name in names:
        once(name)  # warms up
    runs = [{name: once(name) for name in names} for _ in range(ROUNDS)]
    answers = len(tolerances) * sum(len(injection) for injection in injections)
    microseconds = {name: 1e6 * statistics.median(run[name] for run in runs) / answers for name in names}
    fastest = min(microseconds, key=microseconds.__getitem__)
    clearly = serving.solver not in microseconds or microseconds[fastest] <= WORTH_CHANGING_FOR * microseconds[serving.solver]
    return SolverTimes(tolerances, microseconds, iterations, fastest if clearly else serving.solver)
