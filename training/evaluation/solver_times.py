"""Solver times: which solver is fastest in seconds, not in iterations."""

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
"""Rows that iterate together, about as many as in a server on a CPU."""
MAX_TIME_RATIO = 0.9
"""Another solver is recommended if it takes at most this fraction of the time of the model's own."""


@dataclass(frozen=True)
class SolverTimes:
    """The time that each solver takes for the same inputs."""

    tolerances: list[float]
    """Each input is solved at each of them: the model's default, and the tightest that was evaluated."""
    microseconds: dict[str, float]
    """Per input and solver: mean over inputs and tolerances, median over rounds."""
    iterations: dict[str, float]
    """Per input and solver: mean over inputs and tolerances."""
    recommended: str
    """The fastest if it is clearly faster than the model's own, else the model's own."""


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
    """Time every solver that the network supports on the same inputs, in turn, over several rounds.

    Args:
        network: in evaluation mode, on the device; a folded copy is timed, as in the server.
        inputs: raw, shape ``[n, *input_shape]``; the first 256 are used.
        tightest: tolerance, in addition to the model's default.
        clock: returns seconds.
    """
    serving = config.serving
    folded = network.folded().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    injections = [folded.inject(batch.to(device, torch.float32)) for batch in torch.split(inputs[:INPUTS], BATCH_SIZE)]
    tolerances = sorted({serving.tolerance, tightest}, reverse=True)
    names = [name for name in solvers_for(type(network)) if name in solvers_for(type(folded))]
    iterations: dict[str, float] = {}

    def solve_all(name: str) -> float:
        started = clock()
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
        seconds = clock() - started
        iterations[name] = float(torch.cat(counts).double().mean())
        return seconds

    for name in names:
        solve_all(name)  # warm-up
    runs = [{name: solve_all(name) for name in names} for _ in range(ROUNDS)]
    answers = len(tolerances) * sum(len(injection) for injection in injections)
    microseconds = {name: 1e6 * statistics.median(run[name] for run in runs) / answers for name in names}
    fastest = min(microseconds, key=microseconds.__getitem__)
    clearly = serving.solver not in microseconds or microseconds[fastest] <= MAX_TIME_RATIO * microseconds[serving.solver]
    return SolverTimes(tolerances, microseconds, iterations, fastest if clearly else serving.solver)
