"""Forward-backward splitting."""

from torch import Tensor

from jfb.monotone_network import MonotoneNetwork
from jfb.network import ImplicitNetwork
from jfb.solvers.solver import Memory, Solver


class ForwardBackward(Solver):
    """``u_k = φ(u_{k-1} − α ((I − W) u_{k-1} − q))`` (Winston and Kolter, NeurIPS 2020, algorithm 1).

    A gradient-like step on the linear part of a monotone network, and a proximal step on the rest. It converges for every α below
    ``2m / ‖I − W‖²``, and costs one multiplication by W per iteration.

    Args:
        alpha: step size α, positive. The default is the network's own (``MonotoneNetwork.alpha``), for which the iteration is
            Picard iteration of the network's ``step`` and a contraction.
    """

    needs = MonotoneNetwork

    def __init__(self, alpha: float | None = None) -> None:
        if alpha is not None and not alpha > 0:
            raise ValueError(f"alpha: must be a positive number (got {alpha})")
        self.alpha = alpha

    def start(self, state: Tensor) -> Memory:
        return {}

    def evaluate(self, network: ImplicitNetwork, memory: Memory, state: Tensor, injection: Tensor) -> Tensor:
        self.check(type(network))
        assert isinstance(network, MonotoneNetwork)
        alpha = network.alpha() if self.alpha is None else self.alpha
        return network.proximal(network.forward_step(state, injection, alpha))

    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        return next_state
