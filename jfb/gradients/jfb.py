"""Jacobian-free backpropagation."""

from torch import Tensor

from jfb.gradients.gradient import Gradient, Search
from jfb.network import ImplicitNetwork
from jfb.solution import Solution


class JFB(Gradient):
    """Search without gradients, then one tracked application of ``step`` (Figure 3 and eq. 20 of the paper).

    The exact gradient solves with ``I − ∂T/∂u``; JFB replaces that matrix by the identity. Where T is a contraction
    and ``∂T/∂Θ`` is well conditioned, the result is a descent direction (Theorem 0.2), also at an approximate fixed
    point (Corollary 0.1). Memory does not depend on the number of iterations.
    """

    def __call__(self, network: ImplicitNetwork, injection: Tensor, search: Search) -> tuple[Tensor, Solution]:
        solution = search(network, injection)
        return network.step(solution.fixed_point, injection), solution
