"""Theory: the matrices of the paper's theorems, computed densely for small networks, to check the theorems by numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jfb.network import ImplicitNetwork
from jfb.solution import solve


@dataclass(frozen=True)
class DenseMatrices:
    """The matrices of one input at one state u, with the loss ``ℓ(S(T(u)))``: cross entropy.

    The weights of T are those of ``step`` and ``inject``, in one vector; those of S are the weights of ``readout``.
    """

    weights_to_state: Tensor
    """``M = (∂T/∂Θ)ᵀ``, shape ``[weights of T, latent entries]``."""
    system: Tensor
    """``J = I − ∂T/∂u``, shape ``[latent entries, latent entries]``."""
    pulled_back: Tensor
    """``g = ∂ℓ/∂u`` through S, shape ``[latent entries]``."""

    @property
    def jfb(self) -> Tensor:
        """The JFB direction of T's weights, ``M g`` (eq. 20 of the paper)."""
        return self.weights_to_state @ self.pulled_back

    @property
    def exact(self) -> Tensor:
        """The exact gradient of T's weights, ``M J⁻ᵀ g`` (eq. 14), if u is the fixed point."""
        adjoint: Tensor = torch.linalg.solve(self.system.T, self.pulled_back)
        return self.weights_to_state @ adjoint

    @property
    def contraction_factor(self) -> float:
        """``γ = ‖∂T/∂u‖₂`` at u."""
        return float(torch.linalg.matrix_norm(torch.eye(len(self.system), dtype=self.system.dtype) - self.system, 2))

    @property
    def condition(self) -> float:
        """``κ(MᵀM)``, which Theorem 0.2 assumes to be below 1/γ; infinite if M does not have full column rank."""
        largest_first = torch.linalg.svdvals(self.weights_to_state)
        return float((largest_first[0] / largest_first[-1]).square())


def dense_matrices(network: ImplicitNetwork, inputs: Tensor, label: int, state: Tensor | None = None) -> DenseMatrices:
    """Compute the matrices of one input densely.

    Args:
        network: small, float64, in evaluation mode.
        inputs: shape ``[1, *input_shape]``.
        label: the correct class.
        state: the state u, shape ``[1, *state_shape]``; the fixed point by default.
    """
    injection = network.inject(inputs)
    if state is None:
        state = fixed_point(network, injection)
    state = state.detach().requires_grad_()
    next_state = network.step(state, injection)
    weights = [p for p in network.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(entry, [state, *weights], retain_graph=True, allow_unused=True) for entry in next_state.flatten()]
    used = [k for k in range(1, len(weights) + 1) if any(row[k] is not None for row in rows)]
    to_weights = torch.stack([torch.cat([_or_zeros(row[k], weights[k - 1]) for k in used]) for row in rows])
    to_state = torch.stack([_or_zeros(row[0], state) for row in rows])
    read = next_state.detach().requires_grad_()
    (pulled_back,) = torch.autograd.grad(F.cross_entropy(network.readout(read), torch.tensor([label])), read)
    return DenseMatrices(to_weights.T, torch.eye(len(to_state), dtype=to_state.dtype) - to_state, pulled_back.flatten())


def fixed_point(network: ImplicitNetwork, injection: Tensor) -> Tensor:
    """Find the fixed point to float64 precision."""
    return solve(network, injection, tolerance=1e-14, max_iterations=100_000).fixed_point


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like).flatten() if gradient is None else gradient.flatten()


class Sheared(ImplicitNetwork):
    """The smallest map for which the JFB direction is an ascent direction if ``MᵀM`` is ill-conditioned.

    ``T(u) = γ K u + D Θ + d`` on two latent entries, with ``K = [[0, 1], [0, 0]]`` and ``D Dᵀ = diag(1, κ)``, so γ and κ are the
    contraction factor and the condition number of Theorem 0.2. The readout is along ``Jᵀ (√κ, 1)``, where the inner product
    of the JFB direction and the gradient is ``κ (2 − γ√κ)`` times a positive number: negative where ``κ > 4 / γ²``.

    Args:
        contraction: γ, in (0, 1).
        condition: κ, at least 1.
    """

    shear: Tensor
    spread: Tensor
    direction: Tensor

    def __init__(self, contraction: float, condition: float) -> None:
        super().__init__()
        double = torch.float64
        self.register_buffer("shear", contraction * torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=double))
        root = condition**0.5
        self.register_buffer("spread", torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 0.6 * root, 0.8 * root]], dtype=double))
        along = (torch.eye(2, dtype=double) - self.shear).T @ torch.tensor([root, 1.0], dtype=double)
        self.register_buffer("direction", torch.stack([along, -along]))
        self.weights = nn.Parameter(torch.zeros(4, dtype=double))

    def inject(self, inputs: Tensor) -> Tensor:
        return inputs + self.spread @ self.weights

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return state @ self.shear.T + injection

    def readout(self, state: Tensor) -> Tensor:
        return state @ self.direction.T
