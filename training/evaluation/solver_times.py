"""Solver times: which solver is fastest in seconds, not in iterations."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jfb import ImplicitNetwork, ModelConfig, solve
from jfb.checkpoint import solvers_of
from jfb.solvers import Mixing, solvers_for

ROUNDS = 5
MIN_ROUNDS = 2
MAX_SECONDS = 10.0
"""After these no further round begins."""
INPUTS = 256
WITHOUT_START = " without start"
BATCH_SIZE = 64
"""Rows that iterate together, about as many as in a server on a CPU."""
MAX_TIME_RATIO = 0.9
"""Another solver is recommended if it takes at most this fraction of the time of the model's own."""


@dataclass(frozen=True)
class SolverTimes:
    """The time that each solver takes for the same inputs."""

    tolerances: list[float]
    """Each input is solved at each of them: the model's default, and the tightest that was evaluated; loosest first."""
    microseconds_at: dict[str, list[float]]
    """Per input, solver and tolerance: mean over inputs, median over rounds."""
    iterations_at: dict[str, list[float]]
    """Per input, solver and tolerance: mean over inputs."""
    max_iterations_at: dict[str, list[int]]
    """Per solver and tolerance: those of the slowest input."""
    microseconds: dict[str, float]
    """Per input and solver: the mean over tolerances."""
    iterations: dict[str, float]
    """Per input and solver: the mean over tolerances."""
    recommended: str
    """The fastest if it is clearly faster than the model's own, else the model's own."""
    start_ratio: float | None = None
    """The least time with the learned start, divided by the least without; None for a model that has no learned start."""

    @property
    def outcomes(self) -> "list[SolverOutcome]":
        """Every solver at every tolerance."""
        return [
            SolverOutcome(solver, tolerance, iterations, microseconds)
            for solver, times in self.microseconds_at.items()
            for tolerance, iterations, microseconds in zip(self.tolerances, self.iterations_at[solver], times, strict=True)
        ]


@dataclass(frozen=True)
class SolverOutcome:
    """The cost of one solver at one tolerance."""

    solver: str
    tolerance: float
    iterations: float
    """Mean per input."""
    microseconds: float
    """Per input: mean over inputs, median over rounds."""


@torch.no_grad()
def time_solvers(
    network: ImplicitNetwork,
    config: ModelConfig,
    inputs: Tensor,
    tightest: float,
    *,
    mixing: Mixing | None = None,
    mixing_without_start: Mixing | None = None,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> SolverTimes:
    """Time every solver that the network supports on the same inputs, in turn, over several rounds.

    A network with a learned start is also timed without it, under names that end in ``WITHOUT_START``.

    Args:
        network: in evaluation mode, on the device; a folded copy is timed, as in the server.
        inputs: raw, shape ``[n, *input_shape]``; the first 256 are used.
        tightest: tolerance, in addition to the model's default.
        mixing: the network's learned solver, if it has one.
        mixing_without_start: the one to take without the learned start; ``mixing`` by default.
        clock: returns seconds.
    """
    serving = config.serving
    folded = network.folded().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    injections = [folded.inject(batch.to(device, torch.float32)) for batch in torch.split(inputs[:INPUTS], BATCH_SIZE)]
    tolerances = sorted({serving.tolerance, tightest}, reverse=True)
    of_both = solvers_for(type(folded))
    solvers = {name: solver for name, solver in solvers_of(network, config, mixing).items() if solver.learned or name in of_both}
    variants = {name: (solver, True) for name, solver in solvers.items()}
    if folded.learned_start is not None:
        others = solvers if mixing_without_start is None else solvers | {"mixing": mixing_without_start}
        variants |= {name + WITHOUT_START: (solver, False) for name, solver in others.items()}
    counts: dict[str, list[Tensor]] = {}

    def solve_all(name: str) -> list[float]:
        """The seconds at each tolerance."""
        seconds = []
        counts[name] = []
        solver, started = variants[name]
        for tolerance in tolerances:
            begin = clock()
            found = [
                solve(
                    folded,
                    injection,
                    tolerance=tolerance,
                    max_iterations=serving.max_iterations,
                    residual_norm=serving.residual_norm,
                    solver=solver,
                    start=None if started else folded.initial_state(injection),
                ).iterations
                for injection in injections
            ]
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(clock() - begin)
            counts[name].append(torch.cat(found))
        return seconds

    for name in variants:
        solve_all(name)  # warm-up
    began = clock()
    runs: list[dict[str, list[float]]] = []
    while len(runs) < MIN_ROUNDS or (len(runs) < ROUNDS and clock() - began < MAX_SECONDS):
        runs.append({name: solve_all(name) for name in variants})
    inputs_timed = sum(len(injection) for injection in injections)
    microseconds_at = {
        name: [1e6 * statistics.median(times) / inputs_timed for times in zip(*(run[name] for run in runs), strict=True)]
        for name in variants
    }
    microseconds = {name: statistics.mean(found) for name, found in microseconds_at.items()}
    iterations_at = {name: [float(found.double().mean()) for found in counts[name]] for name in variants}
    fastest = min(solvers, key=microseconds.__getitem__)
    clearly = serving.solver not in microseconds or microseconds[fastest] <= MAX_TIME_RATIO * microseconds[serving.solver]
    without = [microseconds[name] for name, (_, started) in variants.items() if not started]
    return SolverTimes(
        tolerances=tolerances,
        microseconds_at=microseconds_at,
        iterations_at=iterations_at,
        max_iterations_at={name: [int(found.max()) for found in counts[name]] for name in variants},
        microseconds=microseconds,
        iterations={name: statistics.mean(found) for name, found in iterations_at.items()},
        recommended=fastest if clearly else serving.solver,
        start_ratio=microseconds[fastest] / min(without) if without else None,
    )
