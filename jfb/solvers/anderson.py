"""Anderson acceleration, row by row."""

from collections.abc import Mapping
from functools import cache
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jfb.rows import first_numbers
from jfb.solvers.solver import Memory, Solver

MIN_SCALE = 1e-300
"""Lower bound of the divisor of a Gram matrix, which is 0 for a row that does not move."""
SKETCH = 256
"""Smallest number of entries of a state that the weights are computed from; states of less than twice that use every entry."""


class Anderson(Solver):
    """Combine the last values of T so that the combined residual is smallest (Walker and Ni, 2011, type II, no damping).

    With ``f_i = T(x_i) − x_i``, the next state is ``Σ α_i T(x_i)`` where α minimises ``‖Σ α_i f_i‖`` subject to
    ``Σ α_i = 1``. Each row has its own history and its own α.

    A few weights are overdetermined by thousands of entries, so only every s-th entry of a large state is used: on the authors'
    network that takes as many iterations as using all, and the products cost a seventh. The Gram matrix of the ``f_i`` is kept,
    and updated with one product per iteration.

    Safeguard: a row whose residual grew drops its history and takes a plain Picard step, so a map that does not suit acceleration
    costs little more than plain iteration.

    Use it where iteration is slow (γ near 1, tight tolerances). It reads ``window`` states per iteration, so Picard is faster for
    a network that converges in a few steps.

    Args:
        window: how many of them to combine, at least 2.
        regularisation: added to the Gram matrix's diagonal, relative to its largest entry; positive.
    """

    def __init__(self, window: int = 4, regularisation: float = 1e-7) -> None:
        if window < 2:
            raise ValueError(f"window: must be an integer of at least 2 (got {window})")
        if not regularisation > 0:
            raise ValueError(f"regularisation: must be a positive number (got {regularisation})")
        self.window = window
        self.regularisation = regularisation

    def start(self, state: Tensor) -> Memory:
        rows, size = state.shape[0], state.shape[1:].numel()
        return {
            "values": state.new_zeros(rows, self.window, size),
            "movements": state.new_zeros(rows, self.window, -(-size // stride(size))),
            "gram": state.new_zeros(rows, self.window, self.window, dtype=torch.float64),
            "count": torch.zeros(rows, dtype=torch.int64, device=state.device),
            "smallest": state.new_full((rows,), torch.inf),
        }

    def propose(self, memory: Memory, state: Tensor, next_state: Tensor) -> Tensor:
        places = memory_order(state)
        flat, before = (tensor.detach().permute(places).flatten(1) for tensor in (next_state, state))
        entries = sample(tuple(state.shape[1:]), tuple(places), state.device)
        if state.device.type == "cpu":
            # Forty small operations, each of which takes NumPy a third of PyTorch's time; the memory is shared.
            arrays = {name: tensor.numpy() for name, tensor in memory.items()}
            with np.errstate(all="ignore"):  # the caller ends rows that diverge
                following = torch.from_numpy(self._combine(np, arrays, flat.numpy(), before.numpy(), entries.numpy()))
        else:
            following = self._combine(torch, memory, flat, before, entries)
        return following.view(state.permute(places).shape).permute(inverse(places))

    def _combine(self, xp: Any, memory: Mapping[str, Any], next_state: Any, state: Any, sampled: Any) -> Any:
        """Compute the next states from arrays of ``xp``, ``numpy`` or ``torch``, with the functions that both have."""
        values, movements, gram, count, smallest = (memory[name] for name in ("values", "movements", "gram", "count", "smallest"))
        movement = next_state[:, sampled] - state[:, sampled]
        size = xp.sqrt((movement * movement).sum(1))
        grew = size > smallest
        count *= ~grew
        gram *= ~grew[:, None, None]
        smallest[:] = xp.where(grew, size, xp.minimum(smallest, size))

        rows, entries = first_numbers(xp, len(next_state), next_state), first_numbers(xp, self.window, next_state)
        place = count % self.window
        count += 1
        values[rows, place] = next_state
        movements[rows, place] = movement
        used = xp.asarray(entries < count[:, None], dtype=xp.float64)
        products = xp.matmul(movements, movement[:, :, None])[:, :, 0] * used
        gram[rows, place] = products
        gram[rows, :, place] = products

        weights = self._weights(xp, gram, used)
        plain = grew | ~xp.isfinite(weights.sum(1))
        weights = xp.where(plain[:, None], xp.asarray(entries == place[:, None], dtype=xp.float64), weights)
        return xp.matmul(xp.asarray(weights, dtype=values.dtype)[:, None], values)[:, 0]

    def _weights(self, xp: Any, gram: Any, used: Any) -> Any:
        """Solve ``argmin αᵀGα`` with ``Σα = 1`` over the used entries (the others are 0 in G): ``Gα ∝ 1``, ``[n, window]``.

        By elimination, because the regularised G is positive definite, and a library's solver may raise for a single row.
        """
        entries = first_numbers(xp, self.window, gram)
        scale = xp.amax(gram[:, entries, entries], 1).clip(MIN_SCALE)
        system = xp.concatenate([gram / scale[:, None, None], used[:, :, None]], 2)
        system[:, entries, entries] += self.regularisation
        for k in range(self.window):
            row = system[:, k] / system[:, k, k : k + 1]
            system -= system[:, :, k : k + 1] * row[:, None]
            system[:, k] = row
        solution = system[:, :, -1]
        return solution / solution.sum(1)[:, None]


@cache
def stride(size: int) -> int:
    """The step between the entries of a state that are used, coprime to its size, so that it visits every channel and column."""
    return next(step for step in range(max(size // SKETCH, 1), 0, -1) if gcd(step, size) == 1)


@cache
def sample(shape: tuple[int, ...], order: tuple[int, ...], device: torch.device) -> Tensor:
    """Where every s-th entry of a state lies in memory: the same entries, in the same order, however states are laid out.

    Args:
        shape: of one state.
        order: ``memory_order`` of the states.
    """
    entries = np.arange(prod(shape)).reshape(1, *shape).transpose(order).ravel()  # by place in memory
    return torch.from_numpy(np.argsort(entries)[:: stride(prod(shape))].copy()).to(device)


def inverse(order: list[int]) -> list[int]:
    """The inverse of a permutation."""
    return sorted(range(len(order)), key=order.__getitem__)


def memory_order(tensor: Tensor) -> list[int]:
    """The dimensions of rows ``[n, ...]`` in memory order, so that flattening does not copy."""
    return [0, *sorted(range(1, tensor.dim()), key=tensor.stride, reverse=True)]
