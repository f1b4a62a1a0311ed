"""Alignment: the angle between the JFB direction and the exact gradient during training, and the contraction factor."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jfb import ImplicitNetwork, fixed_point
from jfb.contraction import local_contraction_factor
from jfb.gradients import JFB, Gradient, Jacobian, Search

EXACT = 1e-6
"""Tolerance of the fixed point and of the adjoint system for the exact gradient, about the resolution of float32."""


@dataclass(frozen=True)
class Alignment:
    """Measurements on one batch, before the step that learns from it."""

    step: int
    """Counted from 0."""
    cosine: float
    """Between the JFB direction and the exact gradient, over the parameters of ``inject`` and ``step``; the gradient of those of
    ``readout`` is the same under both."""
    contraction_mean: float
    """Mean over the batch of ``‖∂T/∂u‖₂`` at the fixed points: the local γ of eq. 9 of the paper."""
    contraction_max: float
    contraction_bound: float | None
    """Guaranteed upper bound on γ, for all states and inputs; None without a guarantee."""
    adjoint_residual: float
    """Residual of the linear system of the exact gradient (eq. 14)."""


class AlignmentRecorder:
    """A ``BeforeStep`` that measures alignment at regular intervals, on the first rows of the batch.

    Args:
        search: of training; the JFB direction is taken at the state that it ends with.
        every: steps between measurements.
        rows: of the batch to measure.
    """

    def __init__(self, search: Search, every: int, rows: int = 64) -> None:
        self.alignments: list[Alignment] = []
        self._search = search
        self._every = every
        self._rows = rows
        self._step = 0

    def __call__(self, network: ImplicitNetwork, inputs: Tensor, labels: Tensor) -> None:
        if self._step % self._every == 0:
            devices = [inputs.device] if inputs.is_cuda else []
            with torch.random.fork_rng(devices):
                # A copy, because in training mode inject changes its batch statistics.
                alignment = measure_alignment(
                    copy.deepcopy(network), inputs[: self._rows], labels[: self._rows], self._search, self._step
                )
            self.alignments.append(alignment)
        self._step += 1


def measure_alignment(network: ImplicitNetwork, inputs: Tensor, labels: Tensor, search: Search, step: int) -> Alignment:
    """Measure one batch: inputs ``[n, *input_shape]``, labels ``[n]``. The batch statistics of ``inject`` may change."""
    exact_search = Search(EXACT, 1000, search.residual_norm)
    exact = Jacobian(EXACT, 1000)
    approximate_direction = direction(network, JFB(), search, inputs, labels)
    exact_direction = direction(network, exact, exact_search, inputs, labels)
    with torch.no_grad():
        injection = network.inject(inputs)
    factors = local_contraction_factor(network, exact_search(network, injection).fixed_point, injection, iterations=15)
    return Alignment(
        step=step,
        cosine=float(F.cosine_similarity(approximate_direction, exact_direction, dim=0)),
        contraction_mean=float(factors.mean()),
        contraction_max=float(factors.amax()),
        contraction_bound=network.contraction_bound(),
        adjoint_residual=exact.residual,
    )


def direction(network: ImplicitNetwork, gradient: Gradient, search: Search, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the loss through the state only, over all parameters that it reaches, as one vector."""
    torch.manual_seed(0)  # the same dropout mask for every gradient
    state, _ = fixed_point(network, injection=network.inject(inputs), gradient=gradient, **vars(search))
    read = state.detach().requires_grad_()
    (pulled_back,) = torch.autograd.grad(F.cross_entropy(network.readout(read), labels), read)
    gradients = torch.autograd.grad(state, list(network.parameters()), pulled_back, allow_unused=True)
    return torch.cat([part.flatten() for part in gradients if part is not None])
