"""Peaceman-Rachford splitting."""

import torch
from torch import Tensor

from jfb.monotone_network import MonotoneNetwork
from jfb.network import ImplicitNetwork
from jfb.solvers.solver import Memory, Solver


class PeacemanRachford(Solver):
    """Reflect at the resolvent of the linear part, then at that of the rest (Winston and Kolter, NeurIPS 2020, algorithm 2).

    With a dual variable v a row, ``w = 2u − v``, ``z = (I + α (I − W))⁻¹ (w + α q)``, ``v ← 2z − w``, ``u ← φ(v)``. It
    converges for every α > 0, mostly in fewer iterations than forward-backward splitting, and costs one multiplication by the
    inverse an iteration: of convolutions a Fourier transform there and back.

    The residual is the movement of u. The dual variable starts where it would stand if the row's first point were the fixed
    point, so that a row that starts there stays.

    Args:
        alpha: step size α, positive.
    """

    needs = MonotoneNetwork

    def __init__(self, alpha: float = 0.5) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha: expected a positive number, got {alpha}")
        self.alpha = alpha

    def start(self, point: Tensor) -> Memory:
        return {
            "dual": torch.zeros_like(point),
            "begun": torch.zeros(point.shape[0], dtype=torch.bool, device=point.device),
        }

    def evaluate(self, network: ImplicitNetwork, memory: Memory, point: Tensor, injection: Tensor) -> Tensor:
        self.check(type(network))
        assert isinstance(network, MonotoneNetwork)
        dual, begun = memory["dual"], memory["begun"]
        new = (~begun).nonzero().squeeze(1)
        if len(new):  # not in start(), which does not know the injection
            dual[new] = network.forward_step(point[new], injection[new], self.alpha)
            begun.fill_(True)
        reflected = 2 * point - dual
        dual.copy_(2 * network.resolvent(reflected + self.alpha * injection, self.alpha) - reflected)
        return network.proximal(dual)

    def propose(self, memory: Memory, point: Tensor, image: Tensor) -> Tensor:
        return image
