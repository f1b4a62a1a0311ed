"""Label stops: their accuracy and cost on held-out data, and the calibration of those that are estimates."""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from jfb import ImplicitNetwork, LabelStop, ModelConfig, solve
from jfb.config import LabelCalibration, Serving
from jfb.label_stop import Kind, label_tolerance
from jfb.norms import residual, row_norms
from jfb.solvers import Memory, Picard
from training.data import Data

MAX_DIFFERING = 0.001
"""Fraction of the labels of each part that may differ from the exact fixed point's."""
SAFETIES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""At least one, however few labels differ: inputs in production are harder than held-out ones."""
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
    lipschitz: float | None
    """Largest observed change of a logit difference per unit of change of the state; None for a guarantee."""
    validation: PartOutcome
    """On the part that safety and lipschitz were chosen on."""
    test: PartOutcome

    @property
    def offered(self) -> bool:
        """Whether a server may use label stops: few enough labels differ on both parts."""
        return self.kind is Kind.GUARANTEE or (self.validation.acceptable and self.test.acceptable)

    @property
    def calibration(self) -> LabelCalibration | None:
        """What ``config.json`` needs; None for a guarantee, and if label stops are not offered."""
        if self.lipschitz is None or not self.offered:
            return None
        return LabelCalibration(
            safety=self.safety,
            lipschitz=self.lipschitz,
            tolerance=self.tolerance,
            validation_inputs=self.validation.inputs,
            validation_differing=self.validation.differing,
            inputs=self.test.inputs,
            differing=self.test.differing,
            iterations=self.test.iterations,
        )


def calibrate(network: ImplicitNetwork, config: ModelConfig, data: Data, *, device: torch.device, console: Console) -> LabelStops:
    """Evaluate label stops on the validation and test parts, with Picard iteration.

    An estimate uses the steepest readout observed on the validation part, and the smallest safety factor with which few enough
    of its labels differ, or the largest factor if none suffices. A guarantee needs no calibration.

    Args:
        network: in evaluation mode, on the device.
    """
    stop = LabelStop.guarantee(network) or LabelStop(Kind.ESTIMATE, 1.0)
    serving = config.serving.model_copy(update={"label_calibration": None})  # ignore an earlier calibration
    serving = serving.model_copy(update={"tolerance": label_tolerance(serving)})

    def record(inputs: Tensor) -> LabelTrajectories:
        return _record(network, inputs, serving, stop, device, console)

    validation, test = record(data.validation.inputs), record(data.test.inputs)
    lipschitz, safeties = (validation.steepest, SAFETIES) if stop.kind is Kind.ESTIMATE else (1.0, (1.0,))
    sufficient = (safety for safety in safeties if validation.outcome(safety * lipschitz).acceptable)
    safety = next(sufficient, safeties[-1])
    return LabelStops(
        kind=stop.kind,
        tolerance=serving.tolerance,
        safety=safety,
        lipschitz=lipschitz if stop.kind is Kind.ESTIMATE else None,
        validation=validation.outcome(safety * lipschitz),
        test=test.outcome(safety * lipschitz),
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
    steepest: float
    """Largest change of a logit difference per unit of change of the state."""

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
    device: torch.device,
    console: Console,
    batch_size: int = 500,
) -> LabelTrajectories:
    batches = []
    steepest = 0.0
    for batch in track(torch.split(inputs, batch_size), "label stops", console=console, transient=True):
        recorder = _LabelRecorder(network, stop, serving, len(batch))
        injection = network.inject(batch.to(device, torch.float32))
        norm, cap = serving.residual_norm, serving.max_iterations
        end = solve(network, injection, tolerance=serving.tolerance, max_iterations=cap, residual_norm=norm, solver=recorder)
        exact_end = solve(
            network,
            injection,
            tolerance=serving.tolerance / EXACT_FACTOR,
            max_iterations=2 * cap,
            residual_norm=norm,
            start=end.fixed_point,
        )
        exact = network.readout(exact_end.fixed_point).argmax(1).masked_fill(~(exact_end.residual <= serving.tolerance), -1)
        batches.append((recorder.ratio, recorder.index, end.iterations.cpu(), exact.cpu()))
        steepest = max(steepest, recorder.steepest)
    ratio, index, iterations, exact = (torch.cat(columns) for columns in zip(*batches, strict=True))
    return LabelTrajectories(ratio, index, iterations, exact, steepest)


class _LabelRecorder(Picard):
    """Picard iteration that records whether the label of each ``T(u)`` is settled."""

    def __init__(self, network: ImplicitNetwork, stop: LabelStop, serving: Serving, rows: int) -> None:
        self.ratio = torch.full((rows, serving.max_iterations), torch.nan)
        self.index = torch.full((rows, serving.max_iterations), -1)
        self.steepest = 0.0
        self._network = network
        self._stop = stop
        self._serving = serving
        self._column = 0

    def start(self, state: Tensor) -> Memory:
        rows = torch.arange(state.shape[0], device=state.device)
        return {"row": rows, "logits": self._network.readout(state), **self._stop.start(state)}

    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        rows, logits = memory["row"].cpu(), self._network.readout(next_state)
        stability = self._stop.judge(memory, state, next_state, logits)
        self.ratio[rows, self._column] = (stability.bound / stability.margin).cpu()
        self.index[rows, self._column] = logits.argmax(1).cpu()
        change = logits - memory["logits"]
        slope = (change.amax(1) - change.amin(1)) / row_norms(next_state - state)
        # Near the fixed state the slope is mostly rounding error, and the first iteration is not representative.
        counts = (residual(state, next_state, self._serving.residual_norm) > self._serving.tolerance) & slope.isfinite()
        if self._column and bool(counts.any()):
            self.steepest = max(self.steepest, float(slope[counts].amax()))
        memory["logits"].copy_(logits)
        self._column += 1
        return next_state
