"""Picard iteration."""

from torch import Tensor

from jfb.solvers.solver import Memory, Solver


class Picard(Solver):
    """Plain fixed-point iteration, ``u_k = T(u_{k-1})`` (Algorithm 1 of the paper).

    Converges from any start at the rate γ where T is a contraction with factor γ (Banach). Has no memory. When γ is
    close to 1 it is slow.
    """

    def start(self, state: Tensor) -> Memory:
        return {}

    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        return next_state
