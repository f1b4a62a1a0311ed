"""Trajectories: what each input would have been answered after each iteration, from one pass."""

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


@dataclass(frozen=True)
class Answers:
    """How a part is answered at one tolerance and cap; each of shape ``[n]``."""

    index: Tensor
    """Of the class, int64; ``NO_ANSWER`` where the iteration diverged."""
    iterations: Tensor
    converged: Tensor


@dataclass(frozen=True)
class Trajectories:
    """One row an input, one column an iteration, up to the tightest tolerance and the largest cap that was asked for.

    An input's iterates do not depend on where it will stop, so one pass holds the answers at every looser tolerance and
    every smaller cap, exactly as ``jfb.predict`` would give them.
    """

    residual: Tensor
    """``r_k``, shape ``[n, max_iterations]``; NaN after the row's end."""
    index: Tensor
    """The class with the largest logit after iteration k, int64; ``NO_ANSWER`` where logits are not finite."""

    def answers(self, tolerance: float, max_iterations: int) -> Answers:
        """Stop every row at its first iteration whose residual is at or under the tolerance, or at the cap.

        Args:
            tolerance: at least the tightest of the pass.
            max_iterations: 1 to the cap of the pass.
        """
        ended = (self.residual <= tolerance) | ~self.residual.isfinite()
        ended = ended[:, :max_iterations].clone()
        ended[:, -1] = True
        last = ended.to(torch.uint8).argmax(1, keepdim=True)  # the first of the ones
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
    tolerance: float,
    max_iterations: int,
    device: torch.device,
    console: Console,
    batch_size: int = 500,
) -> Trajectories:
    """Iterate a part's inputs ``[n, *input_shape]`` and write down residual and answer after every iteration.

    Args:
        network: in evaluation mode.
        serving: names the solver and the norm.
        tolerance: the tightest that will be asked for.
        max_iterations: the largest cap that will be asked for.
    """
    batches = []
    for batch in track(torch.split(inputs, batch_size), "iterating", console=console, transient=True):
        recorder = Recorder(SOLVERS[serving.solver](), network, serving.residual_norm, len(batch), max_iterations)
        solve(
            network,
            network.inject(batch.to(device, torch.float32)),
            tolerance=tolerance,
            max_iterations=max_iterations,
            residual_norm=serving.residual_norm,
            solver=recorder,
        )
        batches.append((recorder.residual, recorder.index))
    return Trajectories(*(torch.cat(columns) for columns in zip(*batches, strict=True)))


class Recorder(Solver):
    """Solves as another solver does, and records each next state's label and residual: any of them could have been the answer."""

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
        logits = self._network.readout(next_state)
        index = torch.where(logits.isfinite().all(1), logits.argmax(1), NO_ANSWER)
        self.residual[rows, self._column] = residual(state, next_state, self._norm).cpu()
        self.index[rows, self._column] = index.cpu()
        self._column += 1
        return self._solver.propose(memory, state, next_state)
