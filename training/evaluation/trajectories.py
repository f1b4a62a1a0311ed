"""Trajectories: residual and predicted class of each input after each iteration, from one pass."""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from jfb import ImplicitNetwork, ResidualNorm, residual, solve
from jfb.config import Serving
from jfb.solvers import SOLVERS, Solver
from jfb.solvers.solver import Memory

NO_ANSWER = -1
"""Class index where logits are not finite."""


@dataclass(frozen=True)
class Answers:
    """The answers for a part at one tolerance and cap; each of shape ``[n]``."""

    index: Tensor
    """Predicted class, int64; ``NO_ANSWER`` where the iteration diverged."""
    iterations: Tensor
    converged: Tensor


@dataclass(frozen=True)
class Trajectories:
    """One row per input and one column per iteration, up to the tightest tolerance and the largest cap.

    The iterates of an input do not depend on where it will stop, so one pass contains the answers at every looser tolerance
    and every smaller cap, exactly as ``jfb.predict`` would return them.
    """

    residual: Tensor
    """``r_k``, shape ``[n, max_iterations]``; NaN after the row's last iteration."""
    index: Tensor
    """Class with the largest logit after iteration k, int64, of the same shape; ``NO_ANSWER`` where logits are not finite."""
    first_index: Tensor
    """Class with the largest logit at the first state, before any iteration, int64 ``[n]``."""

    def answers(self, tolerance: float, max_iterations: int) -> Answers:
        """Return the answers if every row stops at its first residual at or below the tolerance, or at the cap.

        Args:
            tolerance: at least that of the pass.
            max_iterations: 1 to the cap of the pass.
        """
        ended = (self.residual <= tolerance) | ~self.residual.isfinite()
        ended = ended[:, :max_iterations].clone()
        ended[:, -1] = True
        last = ended.to(torch.uint8).argmax(1, keepdim=True)  # the first that is set
        return Answers(
            index=self.index.gather(1, last).squeeze(1),
            iterations=last.squeeze(1) + 1,
            converged=self.residual.gather(1, last).squeeze(1) <= tolerance,
        )


@torch.no_grad()
def record(
    network: ImplicitNetwork,
    inputs: Tensor,
    serving: Serving,
    *,
    solver: Solver | None = None,
    tolerance: float,
    max_iterations: int,
    device: torch.device,
    console: Console,
    batch_size: int = 500,
) -> Trajectories:
    """Iterate inputs ``[n, *input_shape]`` and record residual and predicted class after every iteration.

    Args:
        network: in evaluation mode.
        serving: its solver and residual norm.
        solver: the model's default if not given.
        tolerance: the tightest that will be needed.
        max_iterations: the largest cap that will be needed.
    """
    batches = []
    for batch in track(torch.split(inputs, batch_size), "iterating", console=console, transient=True):
        recorder = Recorder(solver or SOLVERS[serving.solver](), network, serving.residual_norm, len(batch), max_iterations)
        injection = network.inject(batch.to(device, torch.float32))
        first_index = predicted_class(network.readout(network.first_state(injection))).cpu()
        solve(
            network,
            injection,
            tolerance=tolerance,
            max_iterations=max_iterations,
            residual_norm=serving.residual_norm,
            solver=recorder,
        )
        batches.append((recorder.residual, recorder.index, first_index))
    return Trajectories(*(torch.cat(columns) for columns in zip(*batches, strict=True)))


def predicted_class(logits: Tensor) -> Tensor:
    """Return the class with the largest logit, int64 ``[n]``; ``NO_ANSWER`` where logits ``[n, classes]`` are not finite."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), NO_ANSWER)


class Recorder(Solver):
    """A solver that wraps another one and records the readout of each ``T(u)``, at which the row could have stopped."""

    def __init__(self, solver: Solver, network: ImplicitNetwork, norm: ResidualNorm, rows: int, max_iterations: int) -> None:
        self.residual = torch.full((rows, max_iterations), torch.nan)
        self.index = torch.full((rows, max_iterations), NO_ANSWER)
        self._solver = solver
        self._network = network
        self._norm = norm
        self._column = 0
        self.needs = solver.needs

    def start(self, state: Tensor) -> Memory:
        return {"row": torch.arange(state.shape[0], device=state.device), **self._solver.start(state)}

    def evaluate(self, network: ImplicitNetwork, memory: Memory, state: Tensor, injection: Tensor) -> Tensor:
        return self._solver.evaluate(network, memory, state, injection)

    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        rows = memory["row"].cpu()
        self.residual[rows, self._column] = residual(state, next_state, self._norm).cpu()
        self.index[rows, self._column] = predicted_class(self._network.readout(next_state)).cpu()
        self._column += 1
        return self._solver.propose(memory, state, next_state)
