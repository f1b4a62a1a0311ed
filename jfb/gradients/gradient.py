"""The interface of a gradient: find a fixed point and make it differentiable."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from jfb.config import ResidualNorm
from jfb.network import ImplicitNetwork
from jfb.solution import Solution, solve
from jfb.solvers import Solver


@dataclass(frozen=True)
class Search:
    """How the fixed point is found in training; by Corollary 0.1 of the paper it need not be exact."""

    tolerance: float = 1e-2
    max_iterations: int = 50
    residual_norm: ResidualNorm = ResidualNorm.RELATIVE
    solver: Solver | None = None
    bfloat16: bool = False
    """Compute the convolutions and matrix products of the search in bfloat16 (torch's autocast), which takes half the time on
    processors with bfloat16 instructions. States stay float32, and so does the step that is differentiated."""

    def __call__(self, network: ImplicitNetwork, injection: Tensor) -> Solution:
        with torch.autocast(injection.device.type, torch.bfloat16, enabled=self.bfloat16):
            return solve(
                network,
                injection.detach(),
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
                residual_norm=self.residual_norm,
                solver=self.solver,
            )


class Gradient(ABC):
    """Find the fixed point of a batch and attach a gradient to it."""

    @abstractmethod
    def __call__(self, network: ImplicitNetwork, injection: Tensor, search: Search) -> tuple[Tensor, Solution]:
        """Search, and make the result differentiable.

        Args:
            network: its ``step`` is iterated.
            injection: ``network.inject(inputs)``, shape ``[n, ...]``, with its graph.
            search: how to find the fixed point.

        Returns:
            States ``[n, *state_shape]`` for ``readout``, whose backward pass reaches the weights of ``step`` and, through
            the injection, those of ``inject``; and the result of the search.
        """
