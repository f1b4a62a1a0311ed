"""Objective: what the loop minimises and reports for one kind of network."""

from abc import ABC, abstractmethod
from typing import Generic

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb import ImplicitNetwork, fixed_point
from training.data import Split
from training.loop.jacobian_penalty import jacobian_penalty
from training.loop.network import Network
from training.loop.score import Score, score
from training.recipe import Recipe


class Objective(nn.Module, ABC, Generic[Network]):
    """A network, its loss in training, and its score in evaluation."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses of a batch, with its graph, and ``batch_sums`` without one."""

    @abstractmethod
    def score(self, network: Network, part: Split, device: torch.device) -> Score:
        """Score a network of the same kind: the averaged one."""

    def constrain(self) -> None:
        """Restore what the network guarantees after a step of the optimiser."""

    def contraction_bound(self, network: Network) -> float | None:
        """Return a guaranteed upper bound on the contraction factor γ; None without a guarantee."""
        return None


class FixedPointObjective(Objective[ImplicitNetwork]):
    """Cross entropy at the fixed point, differentiated by the recipe's gradient."""

    def __init__(self, network: ImplicitNetwork, recipe: Recipe) -> None:
        super().__init__(network)
        self.gradient, self.search = recipe.gradient.build(), recipe.search.build()
        self.label_smoothing = recipe.optimisation.label_smoothing
        self.jacobian_penalty = recipe.optimisation.jacobian_penalty
        self.serving = recipe.serving

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        injection = self.network.inject(inputs)
        state, solution = fixed_point(self.network, injection=injection, gradient=self.gradient, **vars(self.search))
        logits = self.network.readout(state)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        if self.jacobian_penalty:
            loss = loss + self.jacobian_penalty * jacobian_penalty(self.network, solution.fixed_point, injection).sum()
        return loss, batch_sums(loss, logits, labels, solution.iterations.sum())

    def score(self, network: ImplicitNetwork, part: Split, device: torch.device) -> Score:
        return score(network, part, self.serving, device)

    def constrain(self) -> None:
        self.network.constrain()

    def contraction_bound(self, network: ImplicitNetwork) -> float | None:
        return network.contraction_bound()


def batch_sums(loss: Tensor, logits: Tensor, labels: Tensor, iterations: Tensor) -> Tensor:
    """Return the sums ``[3]`` over a batch that the loop reports: loss, correct answers, iterations."""
    correct = (logits.argmax(1) == labels).sum()
    return torch.stack([loss.detach(), correct.to(loss.dtype), iterations.to(loss.dtype)])
