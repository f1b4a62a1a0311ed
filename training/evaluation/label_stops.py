"""Label stops: their accuracy and cost on held-out data, and the calibration of those that are estimates."""

import math
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from jfb import ImplicitNetwork, LabelStop, ModelConfig, solve
from jfb.checkpoint import solvers_of
from jfb.config import LabelCalibration, Serving
from jfb.label_stop import Kind, label_tolerance
from jfb.norms import residual, row_norms
from jfb.solvers import Memory, Mixing, Solver
from training.data import Data

MAX_DIFFERING = 0.001
"""Fraction of the labels of each part that may differ from the exact fixed point's."""
SAFETIES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""At least one, however few labels differ: inputs in production are harder than held-out ones."""
SENSITIVITY_QUANTILE = 0.999
MIN_SENSITIVITY = 1e-9
EXACT_FACTOR = 100.0
"""The label of the exact fixed point is taken at a residual this many times below the tolerance."""


@dataclass(frozen=True)
class PartOutcome:
    """Accuracy and cost of label stops on one part of the data."""

    inputs: int
    differing: int
    """Inputs whose label is not the exact fixed point's, or whose iteration did not converge."""
    iterations: float
    """Mean per input."""

    @property
    def acceptable(self) -> bool:
        """Whether few enough labels differ."""
        return self.differing <= MAX_DIFFERING * self.inputs


@dataclass(frozen=True)
class LabelStops:
    """The ``label_stops`` of ``evaluation.json``."""

    kind: Kind
    tolerance: float
    """Stops the rows whose label is not settled."""
    safety: float
    """Factor on the bound; 1 for a guarantee."""
    sensitivity: float | None
    """What a label's lead loses until the exact fixed point per unit of movement, as a rule; None for a guarantee."""
    validation: PartOutcome
    """On the part that safety and sensitivity were chosen on, with the model's own solver."""
    test: PartOutcome
    """With the model's own solver."""
    validation_by_solver: dict[str, PartOutcome]
    test_by_solver: dict[str, PartOutcome]

    @property
    def offered(self) -> bool:
        """Whether a server may use label stops: few enough labels differ on both parts, whichever solver it is."""
        outcomes = (*self.validation_by_solver.values(), *self.test_by_solver.values())
        return self.kind is Kind.GUARANTEE or all(outcome.acceptable for outcome in outcomes)

    @property
    def calibration(self) -> LabelCalibration | None:
        """What ``config.json`` needs; None for a guarantee, and if label stops are not offered."""
        if self.sensitivity is None or not self.offered:
            return None
        return LabelCalibration(
            safety=self.safety,
            sensitivity=self.sensitivity,
            tolerance=self.tolerance,
            validation_inputs=self.validation.inputs,
            validation_differing=max(outcome.differing for outcome in self.validation_by_solver.values()),
            inputs=self.test.inputs,
            differing=max(outcome.differing for outcome in self.test_by_solver.values()),
            iterations=self.test.iterations,
        )


def calibrate(
    network: ImplicitNetwork,
    config: ModelConfig,
    data: Data,
    *,
    mixing: Mixing | None = None,
    device: torch.device,
    console: Console,
) -> LabelStops:
    """Evaluate label stops on the validation and test parts, with every solver that they support.

    An estimate uses the sensitivity observed on the validation part, and the smallest safety factor with which few enough
    of its labels differ with every solver, or the largest factor if none suffices. A guarantee needs no calibration, and is
    evaluated with the model's own solver only.

    Args:
        network: in evaluation mode, on the device.
        mixing: the network's learned solver, if it has one.
    """
    stop = LabelStop.guarantee(network) or LabelStop(Kind.ESTIMATE, 1.0)
    serving = config.serving.model_copy(update={"label_calibration": None})  # ignore an earlier calibration
    serving = serving.model_copy(update={"tolerance": label_tolerance(serving)})
    of_network = solvers_of(network, config, mixing)
    solvers = {name: solver for name, solver in of_network.items() if stop.supports(type(solver))}
    own = serving.solver if serving.solver in solvers else next(iter(solvers))
    if stop.kind is Kind.GUARANTEE:
        solvers = {own: solvers[own]}

    def record(inputs: Tensor) -> dict[str, LabelTrajectories]:
        return _record(network, inputs, serving, stop, solvers, own, device, console)

    validation, test = record(data.validation.inputs), record(data.test.inputs)
    estimated = stop.kind is Kind.ESTIMATE
    sensitivity = max(found.sensitivity for found in validation.values()) if estimated else 1.0
    safeties = SAFETIES if estimated else (1.0,)
    sufficient = (
        safety for safety in safeties if all(found.outcome(safety * sensitivity).acceptable for found in validation.values())
    )
    safety = next(sufficient, safeties[-1])
    of_validation, of_test = (
        {name: found.outcome(safety * sensitivity) for name, found in part.items()} for part in (validation, test)
    )
    return LabelStops(
        kind=stop.kind,
        tolerance=serving.tolerance,
        safety=safety,
        sensitivity=sensitivity if estimated else None,
        validation=of_validation[own],
        test=of_test[own],
        validation_by_solver=of_validation,
        test_by_solver=of_test,
    )


@dataclass(frozen=True)
class LabelTrajectories:
    """Label and bound of n inputs after each iteration, up to the tolerance or the cap."""

    ratio: Tensor
    """Bound divided by margin after each iteration, shape ``[n, max_iterations]``; NaN after the row's last iteration."""
    index: Tensor
    """Class with the largest logit, of the same shape, int64."""
    iterations: Tensor
    """Until the tolerance or the cap, int64 ``[n]``."""
    exact: Tensor
    """Class of the exact fixed point, int64 ``[n]``; -1 where the iteration did not converge."""
    sensitivity: float
    """What a label's lead lost until the exact fixed point, per unit of movement: at most this in 999 of 1,000 iterations."""

    def outcome(self, factor: float) -> PartOutcome:
        """Return the outcome if each row stops when its margin exceeds ``factor`` times the bound, or at its last iteration."""
        columns = torch.arange(self.ratio.shape[1])
        ended = (self.ratio * factor < 1) | (columns >= self.iterations.unsqueeze(1) - 1)
        last = ended.to(torch.uint8).argmax(1, keepdim=True)  # the first that is set
        differing = self.index.gather(1, last).squeeze(1) != self.exact
        return PartOutcome(len(ended), int(differing.sum()), float((last + 1).double().mean()))


@torch.no_grad()
def _record(
    network: ImplicitNetwork,
    inputs: Tensor,
    serving: Serving,
    stop: LabelStop,
    solvers: dict[str, Solver],
    own: str,
    device: torch.device,
    console: Console,
    batch_size: int = 500,
) -> dict[str, LabelTrajectories]:
    """Iterate with each solver, and compare its labels with those of the exact fixed points, which are found with ``own``."""
    norm, cap = serving.residual_norm, serving.max_iterations
    batches: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in solvers}
    for batch in track(torch.split(inputs, batch_size), "label stops", console=console, transient=True):
        injection = network.inject(batch.to(device, torch.float32))
        exact_end = solve(
            network,
            injection,
            tolerance=serving.tolerance / EXACT_FACTOR,
            max_iterations=3 * cap,
            residual_norm=norm,
            solver=solvers[own],
        )
        logits = network.readout(exact_end.fixed_point)
        unknown = ~(exact_end.residual <= serving.tolerance)
        exact, exact_logits = logits.argmax(1).masked_fill(unknown, -1), logits.masked_fill(unknown.unsqueeze(1), torch.nan)
        for name, solver in solvers.items():
            recorder = _LabelRecorder(solver, network, stop, serving, exact_logits)
            end = solve(network, injection, tolerance=serving.tolerance, max_iterations=cap, residual_norm=norm, solver=recorder)
            batches[name].append(
                (recorder.ratio, recorder.index, end.iterations.cpu(), exact.cpu(), torch.cat(recorder.losses).cpu())
            )
    found = {}
    for name, recorded in batches.items():
        ratio, index, iterations, exact, losses = (torch.cat(columns) for columns in zip(*recorded, strict=True))
        found[name] = LabelTrajectories(ratio, index, iterations, exact, _quantile(losses))
    return found


def _quantile(losses: Tensor) -> float:
    """The smallest of which 999 in 1,000 are at most as large; a tiny number where no lead was lost."""
    if not len(losses):
        return MIN_SENSITIVITY
    place = math.ceil(SENSITIVITY_QUANTILE * len(losses)) - 1
    return max(float(losses.sort().values[place]), MIN_SENSITIVITY)


class _LabelRecorder(Solver):
    """A solver that wraps another one and records whether the label of each ``T(u)`` is settled."""

    def __init__(self, solver: Solver, network: ImplicitNetwork, stop: LabelStop, serving: Serving, exact_logits: Tensor) -> None:
        rows = len(exact_logits)
        self.ratio = torch.full((rows, serving.max_iterations), torch.nan)
        self.index = torch.full((rows, serving.max_iterations), -1)
        self.losses: list[Tensor] = []
        """What leads lost until the exact fixed point, per unit of movement: of every row and iteration."""
        self._solver = solver
        self._network = network
        self._stop = stop
        self._serving = serving
        self._exact_logits = exact_logits
        self._column = 0

    def start(self, state: Tensor) -> Memory:
        rows = torch.arange(state.shape[0], device=state.device)
        return {"row": rows, **self._solver.start(state), **self._stop.start(state)}

    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        rows, logits = memory["row"], self._network.readout(next_state)
        stability = self._stop.judge(memory, self._stop.movement(state, next_state), logits)
        self.ratio[rows.cpu(), self._column] = (stability.bound / stability.margin).cpu()
        self.index[rows.cpu(), self._column] = logits.argmax(1).cpu()
        label = logits.argmax(1, keepdim=True)
        exact = self._exact_logits[rows]
        leads, exact_leads = (z.gather(1, label) - z for z in (logits, exact))
        loss = (leads - exact_leads).amax(1) / row_norms(next_state - state)
        # Near the fixed point it is mostly rounding error.
        counts = (residual(state, next_state, self._serving.residual_norm) > self._serving.tolerance) & loss.isfinite()
        self.losses.append(loss[counts])
        self._column += 1
        return self._solver.propose(memory, state, next_state)
