"""Anderson acceleration, row by row."""

from collections.abc import Mapping
from functools import cache
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jfb.solvers.solver import Memory, Solver

SMALLEST = 1e-300
"""That a Gram matrix is divided by: of a row that does not move, it is 0."""
SKETCH = 256
"""Entries of a state that the weights are found by, at least; all of them in states that are not twice as large."""


class Anderson(Solver):
    """Combine the last values of T so that the combined residual is smallest (Walker and Ni, 2011, type II, no damping).

    With ``f_i = T(x_i) − x_i``, the next state is ``Σ α_i T(x_i)`` where α minimises ``‖Σ α_i f_i‖`` subject to
    ``Σ α_i = 1``. Each row has its own history and its own α.

    A handful of weights is overdetermined by thousands of entries, so of a large state every s-th entry is looked at: on
    the authors' network that takes as many iterations as looking at all, and the products cost a seventh. The Gram matrix
    of the ``f_i`` is kept and brought up to date by one product an iteration.

    Safeguard: a row whose residual grew forgets its history and takes a plain Picard step, so a map that does not suit
    acceleration costs little more than plain iteration.

    It pays where iteration is slow (γ near 1, tight tolerances). It reads ``window`` states an iteration, so a network that
    converges in a handful of steps is better served by Picard.

    Args:
        window: how many of them are combined, at least 2.
        regularisation: added to the Gram matrix's diagonal, relative to its largest entry; positive.
    """

    def __init__(self, window: int = 4, regularisation: float = 1e-7) -> None:
        if window < 2:
            raise ValueError(f"window: expected an integer of at least 2, got {window}")
        if not regularisation > 0:
            raise ValueError(f"regularisation: expected a positive number, got {regularisation}")
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
        if state.device.type == "cpu":
            # Forty small operations, each of which costs NumPy a third of what it costs PyTorch; the memory is shared.
            arrays = {name: tensor.numpy() for name, tensor in memory.items()}
            with np.errstate(all="ignore"):  # a row that diverges is the driver's business
                following = torch.from_numpy(self._combine(np, arrays, flat.numpy(), before.numpy()))
        else:
            following = self._combine(torch, memory, flat, before)
        return following.view(state.permute(places).shape).permute(inverse(places))

    def _combine(self, xp: Any, memory: Mapping[str, Any], next_state: Any, state: Any) -> Any:
        """The next states, from arrays of ``xp``, which is ``numpy`` or ``torch``: here in what the two have in common."""
        values, movements, gram, count, smallest = (memory[name] for name in ("values", "movements", "gram", "count", "smallest"))
        step = stride(next_state.shape[1])
        movement = next_state[:, ::step] - state[:, ::step]
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
        """``argmin αᵀGα`` with ``Σα = 1`` over the used entries (the others are 0 in G): solve ``Gα ∝ 1``. ``[n, window]``.

        By elimination, as G is positive definite once it is regularised. A library's solver may raise for one row of many.
        """
        entries = first_numbers(xp, self.window, gram)
        scale = xp.amax(gram[:, entries, entries], 1).clip(SMALLEST)
        system = xp.concatenate([gram / scale[:, None, None], used[:, :, None]], 2)
        system[:, entries, entries] += self.regularisation
        for k in range(self.window):
            row = system[:, k] / system[:, k, k : k + 1]
            system -= system[:, :, k : k + 1] * row[:, None]
            system[:, k] = row
        solution = system[:, :, -1]
        return solution / solution.sum(1)[:, None]


def first_numbers(xp: Any, end: int, like: Any) -> Any:
    """0, 1, ... end − 1, where an array is."""
    return on_host(end) if xp is np else xp.arange(end, device=like.device)


@cache
def on_host(end: int) -> NDArray[np.int64]:
    """The same array in every iteration."""
    return np.arange(end)


@cache
def stride(size: int) -> int:
    """Every how many entries of a state one is looked at; without a common divisor, lest it keep to some channel or column."""
    return next(step for step in range(max(size // SKETCH, 1), 0, -1) if gcd(step, size) == 1)


def inverse(order: list[int]) -> list[int]:
    """The permutation that undoes another."""
    return sorted(range(len(order)), key=order.__getitem__)


def memory_order(tensor: Tensor) -> list[int]:
    """The dimensions of rows ``[n, ...]`` in the order in which they lie in memory, so that flattening does not copy."""
    return [0, *sorted(range(1, tensor.dim()), key=tensor.stride, reverse=True)]
