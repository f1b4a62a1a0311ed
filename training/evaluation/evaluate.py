"""Evaluate: accuracy and iterations of a model at each tolerance and cap."""

import math
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor

from jfb import ImplicitNetwork, ModelConfig
from jfb.checkpoint import solvers_of
from jfb.config import Serving
from jfb.solvers import Mixing
from training.data import Data, Split
from training.errors import ModelError
from training.evaluation.difficulty import DifficultyOutcome, by_difficulty, by_width
from training.evaluation.label_stops import LabelStops, calibrate
from training.evaluation.solver_times import SolverTimes, time_solvers
from training.evaluation.trajectories import Trajectories, record

TOLERANCES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
CAPS = (1, 2, 5, 10, 20, 50)
FEW_ITERATIONS = (0, 1, 2, 3, 5, 8)
"""After which the anytime answers are reported."""
MAX_ACCURACY_LOSS = 0.0005
"""Accuracy that the recommended tolerance may lose against the tightest."""


@dataclass(frozen=True)
class Outcome:
    """Accuracy and cost of all inputs, or of one class, at one tolerance and one cap."""

    label: str | None
    """Of the class; None for all inputs."""
    tolerance: float
    max_iterations: int
    inputs: int
    accuracy: float
    """In [0, 1]; an input whose iteration diverged counts as wrong."""
    iterations: float
    """Mean per input."""
    p95_iterations: int
    """95th percentile: 95 % of the inputs take at most this many."""
    unconverged: float
    """Fraction that did not reach the tolerance."""


@dataclass(frozen=True)
class AnytimeOutcome:
    """Accuracy if every input is answered after a few iterations, however far it is from its fixed point."""

    iterations: int
    """0 is the readout of the state that the iteration starts at, which means something for a learned start."""
    accuracy: float
    """In [0, 1]."""


@dataclass(frozen=True)
class Evaluation:
    """The content of ``evaluation.json`` and, per class, of ``evaluation.csv``."""

    serving: Serving
    """The model's defaults when it was evaluated; solver and norm apply to the whole table."""
    recommended_tolerance: float
    """The loosest that loses at most 0.05 percentage points of accuracy against the tightest, on the validation part."""
    validation_inputs: int
    outcomes: list[Outcome]
    """On the test part, for all inputs and for each class, at every tolerance and cap."""
    anytime: list[AnytimeOutcome]
    """On the test part."""
    difficulty: list[DifficultyOutcome]
    """At the model's cap: on the test part, for data that says how hard an input is, and on the test parts of other sizes."""
    label_stops: LabelStops
    solver_times: SolverTimes
    """On the validation part."""

    @property
    def with_defaults(self) -> Outcome:
        """All inputs of the test part, at the model's tolerance and cap."""
        defaults = None, self.serving.tolerance, self.serving.max_iterations
        return next(one for one in self.outcomes if (one.label, one.tolerance, one.max_iterations) == defaults)


def evaluate(
    network: ImplicitNetwork,
    config: ModelConfig,
    data: Data,
    *,
    mixing: Mixing | None = None,
    solver_times: SolverTimes | None = None,
    device: torch.device,
    console: Console,
    tolerances: tuple[float, ...] = TOLERANCES,
    caps: tuple[int, ...] = CAPS,
) -> Evaluation:
    """Evaluate a model at every tolerance and cap on the test part.

    Recommends tolerance and solver, and calibrates label stops, on the validation part.

    The model's own tolerance and cap are always included.

    Args:
        network: in evaluation mode, on the device.
        mixing: the network's learned solver, if it has one.
        solver_times: if they were measured already.
        tolerances: positive, in any order.
        caps: at least 1, in any order.

    Raises:
        ModelError: for data of another shape or other classes, and for tolerances and caps out of range.
    """
    _check(config, data, tolerances, caps)
    tolerances = tuple(sorted({*tolerances, config.serving.tolerance}, reverse=True))
    cap = config.serving.max_iterations
    caps = tuple(sorted({*caps, cap}))

    def record_part(part: Split) -> Trajectories:
        return record(
            network,
            part.inputs,
            config.serving,
            solver=solvers_of(network, config, mixing)[config.serving.solver],
            tolerance=tolerances[-1],
            max_iterations=caps[-1],
            device=device,
            console=console,
        )

    test = record_part(data.test)
    sizes = [(test, data.test), *((record_part(part), part) for part in data.generalisation)] if data.generalisation else []
    return Evaluation(
        serving=config.serving,
        recommended_tolerance=recommend(record_part(data.validation), data.validation.labels, tolerances, cap),
        validation_inputs=len(data.validation.labels),
        outcomes=[
            outcome
            for tolerance in tolerances
            for max_iterations in caps
            for outcome in outcomes(test, data.test.labels, config.classes, tolerance, max_iterations)
        ],
        anytime=anytime(test, data.test.labels, tolerances[-1]),
        difficulty=[*by_difficulty(test, data.test, tolerances, cap), *by_width(sizes, tolerances, cap)],
        label_stops=calibrate(network, config, data, mixing=mixing, device=device, console=console),
        solver_times=solver_times
        or time_solvers(network, config, data.validation.inputs, tolerances[-1], mixing=mixing, device=device),
    )


def outcomes(part: Trajectories, labels: Tensor, classes: list[str], tolerance: float, max_iterations: int) -> list[Outcome]:
    """Summarise a part at one tolerance and cap: all inputs first, then each class that has any."""
    answers = part.answers(tolerance, max_iterations)
    correct = answers.index == labels
    found = []
    for index, label in ((None, None), *enumerate(classes)):
        rows = torch.ones_like(correct) if index is None else labels == index
        count = int(rows.sum())
        if not count:
            continue
        iterations = answers.iterations[rows].sort().values
        found.append(
            Outcome(
                label=label,
                tolerance=tolerance,
                max_iterations=max_iterations,
                inputs=count,
                accuracy=int(correct[rows].sum()) / count,
                iterations=int(iterations.sum()) / count,
                p95_iterations=int(iterations[math.ceil(0.95 * count) - 1]),
                unconverged=int((~answers.converged[rows]).sum()) / count,
            )
        )
    return found


def anytime(part: Trajectories, labels: Tensor, tightest: float) -> list[AnytimeOutcome]:
    """Return the accuracy after each of ``FEW_ITERATIONS``, or fewer where an input reaches the tightest tolerance earlier."""
    most = part.residual.shape[1]
    found = {count: part.answers(tightest, min(count, most)).index if count else part.first_index for count in FEW_ITERATIONS}
    return [AnytimeOutcome(count, int((index == labels).sum()) / len(labels)) for count, index in found.items()]


def recommend(part: Trajectories, labels: Tensor, tolerances: tuple[float, ...], max_iterations: int) -> float:
    """Return the loosest tolerance whose accuracy is at most 0.05 percentage points below that of the tightest."""
    correct = {tolerance: int((part.answers(tolerance, max_iterations).index == labels).sum()) for tolerance in tolerances}
    needed = correct[min(tolerances)] - MAX_ACCURACY_LOSS * len(labels)
    return max(tolerance for tolerance in tolerances if correct[tolerance] >= needed)


def _check(config: ModelConfig, data: Data, tolerances: tuple[float, ...], caps: tuple[int, ...]) -> None:
    if not all(0 < tolerance < math.inf for tolerance in tolerances):
        raise ModelError(f"--tolerances must be positive finite numbers (got {list(tolerances)})")
    if not all(cap >= 1 for cap in caps):
        raise ModelError(f"--caps must be at least 1 (got {list(caps)})")
    if data.input.shape != config.input.shape:
        raise ModelError(f"data: inputs must have the model's shape {list(config.input.shape)} (got {list(data.input.shape)})")
    if data.classes != config.classes:
        raise ModelError(f"data: classes must be the model's, {config.classes[:20]} (got {data.classes[:20]})")
