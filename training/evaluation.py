"""Evaluation: what a model's answers are worth at each tolerance and cap, and what they cost."""

import math
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor

from jfb import ImplicitNetwork, ModelConfig
from jfb.config import Serving
from training.data import Data
from training.errors import ModelError
from training.label_stops import LabelStops, calibrate
from training.solver_times import SolverTimes, time_solvers
from training.sources import Split
from training.trajectories import Trajectories, record

TOLERANCES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
CAPS = (1, 2, 5, 10, 20, 50)
WORTH_ITERATING_FOR = 0.0005
"""Accuracy that the recommended tolerance may cost against the tightest."""


@dataclass(frozen=True)
class Outcome:
    """A class of inputs, or all of them, answered at one tolerance and one cap."""

    label: str | None
    """Of the class; None is all inputs."""
    tolerance: float
    max_iterations: int
    inputs: int
    accuracy: float
    """Share that is right, 0 to 1; an input whose iteration diverged is wrong."""
    iterations: float
    """Mean per input."""
    p95_iterations: int
    """95 in 100 inputs take at most so many."""
    unconverged: float
    """Share that had not come to the tolerance at the end."""


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluation.json`` says, but for the classes, which are in ``evaluation.csv``."""

    serving: Serving
    """The model's defaults when it was evaluated; solver and norm hold for the whole table."""
    recommended_tolerance: float
    """The loosest that costs at most 0.05 points of accuracy against the tightest, on the validation part."""
    validation_inputs: int
    outcomes: list[Outcome]
    """On the test part: for all inputs and for each class, at every tolerance and cap."""
    label_stops: LabelStops
    solver_times: SolverTimes
    """On the validation part."""


def evaluate(
    network: ImplicitNetwork,
    config: ModelConfig,
    data: Data,
    *,
    device: torch.device,
    console: Console,
    tolerances: tuple[float, ...] = TOLERANCES,
    caps: tuple[int, ...] = CAPS,
) -> Evaluation:
    """Answer the test part at every tolerance and cap, recommend tolerance and solver by the validation part, try label stops.

    The model's own tolerance and cap are always among them.

    Args:
        network: in evaluation mode, on the device.
        tolerances: positive; any order.
        caps: at least 1; any order.

    Raises:
        ModelError: for data that the model is not for, and tolerances and caps out of range.
    """
    _check(config, data, tolerances, caps)
    tolerances = tuple(sorted({*tolerances, config.serving.tolerance}, reverse=True))
    cap = config.serving.max_iterations
    caps = tuple(sorted({*caps, cap}))

    def pass_over(part: Split) -> Trajectories:
        return record(
            network,
            part.inputs,
            config.serving,
            tolerance=tolerances[-1],
            max_iterations=caps[-1],
            device=device,
            console=console,
        )

    test = pass_over(data.test)
    return Evaluation(
        serving=config.serving,
        recommended_tolerance=recommend(pass_over(data.validation), data.validation.labels, tolerances, cap),
        validation_inputs=len(data.validation.labels),
        outcomes=[
            outcome
            for tolerance in tolerances
            for most in caps
            for outcome in outcomes(test, data.test.labels, config.classes, tolerance, most)
        ],
        label_stops=calibrate(network, config, data, device=device, console=console),
        solver_times=time_solvers(network, config, data.validation.inputs, tolerances[-1], device=device),
    )


def outcomes(part: Trajectories, labels: Tensor, classes: list[str], tolerance: float, max_iterations: int) -> list[Outcome]:
    """Sum up a part at one tolerance and cap: all inputs first, then each class that has any."""
    answers = part.answers(tolerance, max_iterations)
    right = answers.index == labels
    found = []
    for place, label in ((None, None), *enumerate(classes)):
        rows = torch.ones_like(right) if place is None else labels == place
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
                accuracy=int(right[rows].sum()) / count,
                iterations=int(iterations.sum()) / count,
                p95_iterations=int(iterations[math.ceil(0.95 * count) - 1]),
                unconverged=int((~answers.converged[rows]).sum()) / count,
            )
        )
    return found


def recommend(part: Trajectories, labels: Tensor, tolerances: tuple[float, ...], max_iterations: int) -> float:
    """The loosest tolerance that costs at most 0.05 points of accuracy against the tightest, at the model's cap."""
    right = {tolerance: int((part.answers(tolerance, max_iterations).index == labels).sum()) for tolerance in tolerances}
    needed = right[min(tolerances)] - WORTH_ITERATING_FOR * len(labels)
    return max(tolerance for tolerance in tolerances if right[tolerance] >= needed)


def _check(config: ModelConfig, data: Data, tolerances: tuple[float, ...], caps: tuple[int, ...]) -> None:
    if not all(0 < tolerance < math.inf for tolerance in tolerances):
        raise ModelError(f"tolerances: expected positive finite numbers, got {list(tolerances)}")
    if not all(cap >= 1 for cap in caps):
        raise ModelError(f"caps: expected integers of at least 1, got {list(caps)}")
    if data.input.shape != config.input.shape:
        raise ModelError(f"the model takes inputs of shape {list(config.input.shape)}, the data has {list(data.input.shape)}")
    if data.classes != config.classes:
        raise ModelError(f"the model's classes are {config.classes[:20]}, the data's are {data.classes[:20]}")
