"""Alignment: how near the JFB direction is to the exact gradient while a network trains, and how strongly its map contracts."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jfb import ImplicitNetwork
from jfb.contraction import local_contraction_factor
from jfb.gradients import JFB, Gradient, Jacobian, Search

EXACT = 1e-6
"""Tolerance of the fixed point and of the adjoint system in the exact gradient, about what float32 can resolve."""


@dataclass(frozen=True)
class Alignment:
    """One batch, before the step that learns from it."""

    step: int
    """From 0."""
    cosine: float
    """Between what JFB descends along and the exact gradient, over the parameters of ``inject`` and ``step``: those of
    ``readout`` get the same gradient either way."""
    contraction_mean: float
    """Over the batch's inputs, of ``‖∂T/∂u‖₂`` at their fixed points: γ of eq. 9 of the paper, there."""
    contraction_max: float
    contraction_bound: float | None
    """Guaranteed for all states and inputs."""
    adjoint_residual: float
    """How exactly the exact gradient's linear system was solved (eq. 14)."""


class AlignmentWatch:
    """A ``training.train.Watch`` that measures every so many steps, on the first rows of the batch.

    Args:
        search: how training searches for fixed points; the JFB direction is taken where it ends.
        every: steps between measurements.
        rows: of a batch that are measured.
    """

    def __init__(self, search: Search, every: int, rows: int = 64) -> None:
        self.found: list[Alignment] = []
        self._search = search
        self._every = every
        self._rows = rows
        self._step = 0

    def __call__(self, network: ImplicitNetwork, inputs: Tensor, labels: Tensor) -> None:
        if self._step % self._every == 0:
            devices = [inputs.device] if inputs.is_cuda else []
            with torch.random.fork_rng(devices):
                # A copy, because in training mode inject moves its batch statistics.
                found = align(copy.deepcopy(network), inputs[: self._rows], labels[: self._rows], self._search, self._step)
            self.found.append(found)
        self._step += 1


def align(network: ImplicitNetwork, inputs: Tensor, labels: Tensor, search: Search, step: int) -> Alignment:
    """Measure one batch: inputs ``[n, *input_shape]``, labels ``[n]``. Batch statistics of ``inject`` may move."""
    exactly = Search(EXACT, 1000, search.residual_norm)
    exact = Jacobian(EXACT, 1000)
    approximate_direction = direction(network, JFB(), search, inputs, labels)
    exact_direction = direction(network, exact, exactly, inputs, labels)
    with torch.no_grad():
        injection = network.inject(inputs)
    factors = local_contraction_factor(network, exactly(network, injection).fixed_point, injection, iterations=15)
    return Alignment(
        step=step,
        cosine=float(F.cosine_similarity(approximate_direction, exact_direction, dim=0)),
        contraction_mean=float(factors.mean()),
        contraction_max=float(factors.amax()),
        contraction_bound=network.contraction_bound(),
        adjoint_residual=exact.residual,
    )


def direction(network: ImplicitNetwork, gradient: Gradient, search: Search, inputs: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the loss through the state alone, all parameters that it reaches in one vector."""
    torch.manual_seed(0)  # so that all directions see the same dropout
    state, _ = gradient(network, network.inject(inputs), search)
    read = state.detach().requires_grad_()
    (pulled_back,) = torch.autograd.grad(F.cross_entropy(network.readout(read), labels), read)
    gradients = torch.autograd.grad(state, list(network.parameters()), pulled_back, allow_unused=True)
    return torch.cat([part.flatten() for part in gradients if part is not None])
