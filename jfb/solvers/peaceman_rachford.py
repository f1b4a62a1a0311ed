"""Peaceman-Rachford splitting."""

import torch
from torch import Tensor

from jfb.monotone_network import MonotoneNetwork
from jfb.network import ImplicitNetwork
from jfb.solvers.solver import Memory, Solver


class PeacemanRachford(Solver):
    """Reflect at the resolvent of the linear part, then at that of the rest (Winston and Kolter, NeurIPS 2020, algorithm 2).

    With a dual variable v per row, ``w = 2u − v``, ``z = (I + α (I − W))⁻¹ (w + α q)``, ``v ← 2z − w``, ``u ← φ(v)``. It
    converges for every α > 0, mostly in fewer iterations than forward-backward splitting, and costs one multiplication by the
    inverse per iteration: for convolutions, a Fourier transform and its inverse.

    The residual is the movement of u. The dual variable starts at its value if the row's first state were the fixed
    point, so a row that starts at the fixed point stays there.

    Args:
        alpha: step size α, positive.
    """

    needs = MonotoneNetwork

    def __init__(self, alpha: float = 0.5) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha: must be a positive number (got {alpha})")
        self.alpha = alpha

    def start(self, state: Tensor) -> Memory:
        return {
            "dual": torch.zeros_like(state),
            "started": torch.zeros(state.shape[0], dtype=torch.bool, device=state.device),
        }

    def evaluate(self, network: ImplicitNetwork, memory: Memory, state: Tensor, injection: Tensor) -> Tensor:
        self.check(type(network))
        assert isinstance(network, MonotoneNetwork)
        dual, started = memory["dual"], memory["started"]
        # Not in start(), which does not know the injection. To look at the flags on a GPU would be to wait for it.
        if state.device.type != "cpu" or not bool(started.all()):
            # Of all rows, because rounding may depend on how many there are.
            first = network.forward_step(state, injection, self.alpha)
            torch.where(started.view(-1, *(1,) * (dual.dim() - 1)), dual, first, out=dual)
            started.fill_(True)
        reflected = 2 * state - dual
        dual.copy_(2 * network.resolvent(reflected + self.alpha * injection, self.alpha) - reflected)
        return network.proximal(dual)

    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        return next_state
