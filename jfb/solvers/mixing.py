"""Learned mixing: an accelerated iteration whose few coefficients were fitted to one network, with a safeguard."""

from typing import Self

import torch
from torch import Tensor

from jfb.norms import row_norms
from jfb.solvers.solver import Memory, Solver

MAX_GAIN = 16.0
"""Largest accepted ‖A‖₂, so that a step is at most that many times as long as T(u) − u and cannot overflow at once."""
SLACK = 1.25
"""By how much a row's residual may exceed, for a while, what it would be had it shrunk at the safeguard's rate."""

Tensors = dict[str, Tensor]


class Mixing(Solver):
    """``u⁺ = u + A (T(u) − u) + b ⊙ (u − u_prev)``, the same at every iteration, with plain iteration as its safety net.

    A mixes latent channels (dimension 1 of the state; for vectors these are its features), the same at every position; b is one
    momentum per channel. ``python -m training accelerate`` fits both to a network. Every fixed point of T is one of the mixed
    iteration, and if A is invertible there are no others.

    Safeguard: a residual ``r_k = ‖T(u_k) − u_k‖₂`` is allowed ``a_k = min(rate · a_{k−1}, SLACK · r_{k−1})``, where a_1 is
    infinite. So it may not grow by more than a quarter, nor lag behind the rate for more than a few iterations. A row that
    exceeds it goes back to ``T(u)`` of the last state that was allowed, and goes on from there by Picard iteration to its end.
    So a row either shrinks at the safeguard's rate, or is Picard's, one evaluation late: what converges from everywhere under
    Picard converges under mixing, whatever A and b are.

    Args:
        matrix: A, shape ``[channels, channels]``, with ``‖A‖₂`` at most ``MAX_GAIN``.
        momentum: b, shape ``[channels]``, between −1 and 1.
        rate: what the residual must shrink by in each iteration, between 0 and 1; a good choice is what it typically
            shrinks by under Picard.

    Raises:
        ValueError: for shapes that do not belong together, and for entries out of range or not finite.
    """

    learned = True

    def __init__(self, matrix: Tensor, momentum: Tensor, rate: float) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix: must have shape [channels, channels] (got {list(matrix.shape)})")
        if momentum.shape != matrix.shape[:1]:
            raise ValueError(f"momentum: must have shape [{matrix.shape[0]}], as the matrix has (got {list(momentum.shape)})")
        gain = float(torch.linalg.matrix_norm(matrix.double(), 2)) if bool(matrix.isfinite().all()) else torch.inf
        if not gain <= MAX_GAIN * (1 + 1e-6):  # rounding
            raise ValueError(f"matrix: must have a spectral norm of at most {MAX_GAIN:g} (got {gain:g})")
        if not bool((momentum.abs() <= 1).all()):
            raise ValueError(f"momentum: must be between -1 and 1 (got {float(momentum.abs().amax()):g})")
        if not 0 < rate < 1:
            raise ValueError(f"rate: must be between 0 and 1 (got {rate:g})")
        self.matrix = matrix
        self.momentum = momentum
        self.rate = rate
        self._one_and_momentum = 1 + momentum

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        """The solver that ``tensors`` returned these of.

        Raises:
            ValueError: for names other than those, shapes that do not belong together, and values out of range.
        """
        expected = {"matrix", "momentum", "rate"}
        if tensors.keys() != expected:
            raise ValueError(f"tensors: must be {', '.join(sorted(expected))} (got {', '.join(sorted(tensors)) or 'none'})")
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name}: must be torch.float32 (got {tensor.dtype})")
        if tensors["rate"].dim():
            raise ValueError(f"rate: must be one number (got shape {list(tensors['rate'].shape)})")
        return cls(tensors["matrix"], tensors["momentum"], float(tensors["rate"]))

    @property
    def tensors(self) -> Tensors:
        """What is stored of it, float32."""
        rate = torch.tensor(self.rate)
        return {"matrix": self.matrix.float(), "momentum": self.momentum.float(), "rate": rate}

    def check_state(self, state: Tensor) -> None:
        """Refuse states that have another number of channels than A.

        Args:
            state: shape ``[n, channels, ...]``.

        Raises:
            ValueError: naming both numbers.
        """
        if state.dim() < 2 or state.shape[1] != len(self.momentum):
            raise ValueError(
                f"matrix: must have as many rows as the state has channels, {state.shape[1] if state.dim() > 1 else 0} "
                f"(got {len(self.momentum)})"
            )

    def start(self, state: Tensor) -> Memory:
        self.check_state(state)
        return {
            "previous": state.clone(),
            "accepted": torch.zeros_like(state),
            "allowed": state.new_full((state.shape[0],), torch.inf),
        }

    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        previous, accepted, allowed = memory["previous"], memory["accepted"], memory["allowed"]
        proposal, size = self._mix(state, next_state, previous)
        within = size <= allowed
        # On a CPU to select rows costs as much as to mix them, and mostly there is nothing to select.
        if state.device.type != "cpu" or not bool(within.all()):
            proposal = _select(within, allowed, proposal, accepted, next_state)
        previous.copy_(state)
        accepted.copy_(next_state)
        allowed.copy_(self._allow(within, allowed, size))
        return proposal

    def _mix(self, state: Tensor, next_state: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """``u + A (T(u) − u) + b ⊙ (u − u_prev)``, and ``‖T(u) − u‖₂`` of each row."""
        movement = next_state - state
        weight = self._one_and_momentum.to(state).view(-1, *(1,) * (state.dim() - 2))
        # Channels last, for the matrix product; convolutions on a CPU lay out their outputs so, and then nothing is copied.
        start = torch.lerp(previous, state, weight).movedim(1, -1)
        channels = start.shape[-1]
        mixed = start.reshape(-1, channels).addmm_(movement.movedim(1, -1).reshape(-1, channels), self.matrix.to(state).T)
        return mixed.view(start.shape).movedim(-1, 1), row_norms(movement)

    def _allow(self, within: Tensor, allowed: Tensor, size: Tensor) -> Tensor:
        """``a_{k+1}`` of the rows that are within ``a_k``, and 0 of the others."""
        return torch.minimum(self.rate * allowed, SLACK * size) * within


def _select(within: Tensor, allowed: Tensor, proposal: Tensor, accepted: Tensor, next_state: Tensor) -> Tensor:
    """The proposal where it may be followed, T of the last accepted state where it is not any more, else Picard's next state."""
    per_row = (-1, *(1,) * (proposal.dim() - 1))
    rejected = ~within & (allowed > 0)
    return torch.where(within.view(per_row), proposal, torch.where(rejected.view(per_row), accepted, next_state))
