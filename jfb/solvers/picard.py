"""Picard iteration."""

from torch import Tensor

from jfb.solvers.solver import Memory, Solver


class Picard(Solver):
    """Plain fixed-point iteration, ``u_k = T(u_{k-1})`` (Algorithm 1 of the paper).

    If T is a contraction with factor γ, it converges from any start at the rate γ (Banach), which is slow when γ is close to 1.
    It has no memory.
    """

    def start(self, state: Tensor) -> Memory:
        return {}

    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        return next_state
