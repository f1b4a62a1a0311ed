"""MonotoneNetwork: an implicit network whose map splits into a linear and a proximal part."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb.contraction import operator_norm_bound
from jfb.network import ImplicitNetwork


class MonotoneNetwork(ImplicitNetwork):
    """``u = φ(W u + Q(d))`` with ``W = (1 − m) I − AᵀA + B − Bᵀ`` and φ a ReLU (Winston and Kolter, NeurIPS 2020).

    ``I − W = m I + AᵀA − B + Bᵀ`` is strongly monotone with constant m for all A and B, and φ is the proximal operator of a
    convex function for every step size. So exactly one fixed point exists, although ``φ(W u + q)`` itself need not be a
    contraction: splitting methods find it (``jfb.solvers``).

    ``step`` is forward-backward splitting, ``u ← φ(u − α ((I − W) u − q))``, because that is a contraction. Its fixed points are
    those of ``φ(W u + q)`` for every α, so α may depend on the weights and still be a constant in every gradient.

    Args:
        monotonicity: m, positive.

    Attributes:
        A, B: the weights, each a matrix or a kernel.
        symmetric_norm, skew_norm: upper bounds of ``‖AᵀA‖₂`` and ``‖B − Bᵀ‖₂``, from which α is chosen. They are saved with the
            weights: both are convex in the weights, so averaged bounds are bounds for averaged weights.
    """

    A: nn.Parameter
    B: nn.Parameter
    symmetric_norm: Tensor
    skew_norm: Tensor

    def __init__(self, monotonicity: float) -> None:
        super().__init__()
        if not monotonicity > 0:
            raise ValueError(f"monotonicity: must be a positive number (got {monotonicity})")
        self.monotonicity = monotonicity
        self.register_buffer("symmetric_norm", torch.zeros(()))
        self.register_buffer("skew_norm", torch.zeros(()))
        self._cached: tuple[float, tuple[tuple[Tensor, int], ...], Tensor] | None = None

    @abstractmethod
    def linear(self, state: Tensor) -> Tensor:
        """Return ``W u`` for states ``[n, *state_shape]``."""

    @abstractmethod
    def skew(self) -> Tensor:
        """Return ``B − Bᵀ``, as a matrix or a kernel."""

    @abstractmethod
    def matrices(self) -> Tensor:
        """Return the diagonal blocks of W in the basis of ``multiply``, shape ``[k, c, c]``."""

    @abstractmethod
    def multiply(self, matrices: Tensor, state: Tensor) -> Tensor:
        """Apply a linear map, in the form that ``matrices`` returns, to states ``[n, *state_shape]``."""

    def proximal(self, state: Tensor) -> Tensor:
        """Apply φ, the proximal operator of the indicator of the non-negative numbers; it is the same for every step size."""
        return F.relu(state)

    def forward_step(self, state: Tensor, injection: Tensor, alpha: float | Tensor) -> Tensor:
        """Return ``u − α ((I − W) u − q)``."""
        return state + alpha * (self.linear(state) + injection - state)

    @torch.no_grad()
    def resolvent(self, state: Tensor, alpha: float) -> Tensor:
        """Return ``(I + α (I − W))⁻¹ u``.

        The inverse is cached until the weights change. A change through ``.data`` that keeps the storage is not detected, just as
        autograd does not detect it.

        Args:
            state: shape ``[n, *state_shape]``.
            alpha: positive.
        """
        weights = (self.A, self.B)
        if self._cached is not None:
            cached_alpha, cached_weights, inverse = self._cached
            # The cache keeps the storage alive, so no other storage can have its address.
            same = all(
                weight.data_ptr() == kept.data_ptr() and _version(weight) == version and weight.dtype == kept.dtype
                for weight, (kept, version) in zip(weights, cached_weights, strict=True)
            )
            if same and cached_alpha == alpha:
                return self.multiply(inverse, state)
        matrices = self.matrices()
        identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        inverse = torch.linalg.inv((1 + alpha) * identity - alpha * matrices)
        self._cached = alpha, tuple((weight.detach(), _version(weight)) for weight in weights), inverse
        return self.multiply(inverse, state)

    def alpha(self) -> Tensor:
        """Return the step size α of ``step``: a number (0-dimensional tensor).

        With ``p ≥ ‖AᵀA‖``, ``s ≥ ‖B − Bᵀ‖`` and ``α ≤ 2 / (2m + p)``, the squared contraction factor is at most
        ``(1 − αm)² + α²(s² + ps)``: the skew part is orthogonal to the state, and its product with the symmetric part at most
        ``ps / 2``. This α minimises that bound.
        """
        m, p, s = self.monotonicity, self.symmetric_norm, self.skew_norm
        return torch.minimum(m / (m**2 + s * (s + p)), 2 / (2 * m + p))

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return self.proximal(self.forward_step(state, injection, self.alpha()))

    def initial_state(self, injection: Tensor) -> Tensor:
        return self.proximal(injection)

    @torch.no_grad()
    def constrain(self) -> None:
        """Measure the weights for ``alpha``; any weights are allowed, so none change."""
        if self.A.is_meta:  # there is nothing to measure: see jfb.architectures.initialisation
            return
        # As coarse as for spectral normalisation, because it runs after every optimiser step.
        self.symmetric_norm.copy_(operator_norm_bound(self.A, grid=10, squarings=3).square())
        self.skew_norm.copy_(operator_norm_bound(self.skew(), grid=10, squarings=3))

    @torch.no_grad()
    def contraction_bound(self) -> float:
        matrices, alpha = self.matrices(), self.alpha()
        identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        return float(torch.linalg.matrix_norm((1 - alpha) * identity + alpha * matrices, 2).amax())


def _version(weight: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count writes."""
    return 0 if weight.is_inference() else weight._version
