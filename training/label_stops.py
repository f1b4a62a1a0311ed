"""Label stops: what they are worth on held-out data, and the calibration of those that are estimates."""

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

MOST_DIFFERING = 0.001
"""Share of labels that may differ from the exact fixed point's, of each part."""
SAFETIES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Not less than one, however few labels differ: held-out inputs are milder than what comes later."""
FURTHER = 100.0
"""By how much smaller a residual the label of an exact fixed point is taken at than that of a row whose label stayed open."""


@dataclass(frozen=True)
class PartOutcome:
    """What label stops did on one part of the data."""

    inputs: int
    differing: int
    """Inputs whose label was not that of the exact fixed point, or whose iteration never came near one."""
    iterations: float
    """Mean per input."""

    @property
    def acceptable(self) -> bool:
        return self.differing <= MOST_DIFFERING * self.inputs


@dataclass(frozen=True)
class LabelStops:
    """What ``evaluation.json`` says of label stops."""

    kind: Kind
    tolerance: float
    """That ended the rows whose label stayed open."""
    safety: float
    """1 for a guarantee, which needs none."""
    lipschitz: float | None
    """The most that a difference between two logits changed per unit that the state moved; None for a guarantee, which knows."""
    validation: PartOutcome
    """The part that safety and lipschitz were chosen on."""
    test: PartOutcome

    @property
    def offered(self) -> bool:
        """Whether a server may stop rows so: on both parts few enough labels differed."""
        return self.kind is Kind.GUARANTEE or (self.validation.acceptable and self.test.acceptable)

    @property
    def calibration(self) -> LabelCalibration | None:
        """What goes into ``config.json``; None for a guarantee, which needs none, and for what is not offered."""
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
    """Try label stops on the validation and the test part, by plain iteration.

    An estimate takes the steepest readout that was seen on the validation part, and the smallest safety factor with which few
    enough of its labels differ; if none is large enough, the largest. A guarantee is tried as it is.

    Args:
        network: in evaluation mode, on the device.
    """
    stop = LabelStop.guarantee(network) or LabelStop(Kind.ESTIMATE, 1.0)
    serving = config.serving.model_copy(update={"label_calibration": None})  # an earlier one is of no interest
    serving = serving.model_copy(update={"tolerance": label_tolerance(serving)})

    def follow(inputs: Tensor) -> Courses:
        return _follow(network, inputs, serving, stop, device, console)

    validation, test = follow(data.validation.inputs), follow(data.test.inputs)
    lipschitz, safeties = (validation.steepest, SAFETIES) if stop.kind is Kind.ESTIMATE else (1.0, (1.0,))
    enough = (safety for safety in safeties if validation.outcome(safety * lipschitz).acceptable)
    safety = next(enough, safeties[-1])
    return LabelStops(
        kind=stop.kind,
        tolerance=serving.tolerance,
        safety=safety,
        lipschitz=lipschitz if stop.kind is Kind.ESTIMATE else None,
        validation=validation.outcome(safety * lipschitz),
        test=test.outcome(safety * lipschitz),
    )


@dataclass(frozen=True)
class Courses:
    """What became of the labels of n inputs, iteration by iteration, until their tolerance or cap."""

    ratio: Tensor
    """Bound over margin after each iteration, shape ``[n, max_iterations]``; NaN after the row's end."""
    index: Tensor
    """The class with the largest logit, of the same shape, int64."""
    iterations: Tensor
    """At the end, int64 ``[n]``."""
    exact: Tensor
    """The class of the exact fixed point, int64 ``[n]``; -1 where the iteration did not come near one."""
    steepest: float
    """The most that a difference between two logits changed per unit that a state moved."""

    def outcome(self, factor: float) -> PartOutcome:
        """Stop each row at its first iteration whose margin exceeds ``factor`` times the bound, or where it ended."""
        columns = torch.arange(self.ratio.shape[1])
        ended = (self.ratio * factor < 1) | (columns >= self.iterations.unsqueeze(1) - 1)
        last = ended.to(torch.uint8).argmax(1, keepdim=True)  # the first of the ones
        differing = self.index.gather(1, last).squeeze(1) != self.exact
        return PartOutcome(len(ended), int(differing.sum()), float((last + 1).double().mean()))


@torch.no_grad()
def _follow(
    network: ImplicitNetwork,
    inputs: Tensor,
    serving: Serving,
    stop: LabelStop,
    device: torch.device,
    console: Console,
    batch_size: int = 500,
) -> Courses:
    batches = []
    steepest = 0.0
    for batch in track(torch.split(inputs, batch_size), "watching labels", console=console, transient=True):
        follower = _Follower(network, stop, serving, len(batch))
        injection = network.inject(batch.to(device, torch.float32))
        norm, cap = serving.residual_norm, serving.max_iterations
        end = solve(network, injection, tolerance=serving.tolerance, max_iterations=cap, residual_norm=norm, solver=follower)
        further = solve(
            network,
            injection,
            tolerance=serving.tolerance / FURTHER,
            max_iterations=2 * cap,
            residual_norm=norm,
            start=end.fixed_point,
        )
        exact = network.readout(further.fixed_point).argmax(1).masked_fill(~(further.residual <= serving.tolerance), -1)
        batches.append((follower.ratio, follower.index, end.iterations.cpu(), exact.cpu()))
        steepest = max(steepest, follower.steepest)
    ratio, index, iterations, exact = (torch.cat(columns) for columns in zip(*batches, strict=True))
    return Courses(ratio, index, iterations, exact, steepest)


class _Follower(Picard):
    """Iterates, and judges the label of each state on the way."""

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
        # Where a state hardly moves any more, rounding is all that is seen; and the first iteration is like no other.
        counts = (residual(state, next_state, self._serving.residual_norm) > self._serving.tolerance) & slope.isfinite()
        if self._column and bool(counts.any()):
            self.steepest = max(self.steepest, float(slope[counts].amax()))
        memory["logits"].copy_(logits)
        self._column += 1
        return next_state
