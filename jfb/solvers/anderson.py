"""Anderson acceleration, row by row."""

from functools import cache
from math import gcd

import torch
from torch import Tensor

from jfb.solvers.solver import Memory, Solver

SKETCH = 256
"""Entries of a state that the weights are found by, at least; all of them in states that are not twice as large."""


class Anderson(Solver):
    """Combine the last images so that the combined residual is smallest (Walker and Ni, 2011, type II, no damping).

    With ``f_i = T(x_i) − x_i``, the next point is ``Σ α_i T(x_i)`` where α minimises ``‖Σ α_i f_i‖`` subject to
    ``Σ α_i = 1``. Each row has its own history and its own α.

    A handful of weights is overdetermined by thousands of entries, so of a large state every s-th entry is looked at: on
    the authors' network that takes as many iterations as looking at all, and the products cost a seventh. The Gram matrix
    of the ``f_i`` is kept and brought up to date by one product an iteration.

    Safeguard: a row whose residual grew forgets its history and takes a plain Picard step, so a map that does not suit
    acceleration costs little more than plain iteration.

    It pays where iteration is slow (γ near 1, tight tolerances). It reads ``window`` states an iteration, so a network that
    converges in a handful of steps is better served by Picard.

    Args:
        window: how many images are combined, at least 2.
        regularisation: added to the Gram matrix's diagonal, relative to its largest entry; positive.
    """

    def __init__(self, window: int = 4, regularisation: float = 1e-7) -> None:
        if window < 2:
            raise ValueError(f"window: expected an integer of at least 2, got {window}")
        if not regularisation > 0:
            raise ValueError(f"regularisation: expected a positive number, got {regularisation}")
        self.window = window
        self.regularisation = regularisation

    def start(self, point: Tensor) -> Memory:
        rows, size = point.shape[0], point.shape[1:].numel()
        return {
            "images": point.new_zeros(rows, self.window, size),
            "movements": point.new_zeros(rows, self.window, -(-size // stride(size))),
            "gram": point.new_zeros(rows, self.window, self.window),
            "count": torch.zeros(rows, dtype=torch.int64, device=point.device),
            "smallest": point.new_full((rows,), torch.inf),
        }

    def propose(self, memory: Memory, point: Tensor, image: Tensor) -> Tensor:
        images, movements, gram, count, smallest = (memory[name] for name in ("images", "movements", "gram", "count", "smallest"))
        places = memory_order(point)
        flat, before = image.permute(places).flatten(1), point.permute(places).flatten(1)
        step = stride(flat.shape[1])
        movement = flat[:, ::step] - before[:, ::step]
        size = torch.linalg.vector_norm(movement, dim=1)
        grew = size > smallest
        count.masked_fill_(grew, 0)
        gram.masked_fill_(grew[:, None, None], 0)
        torch.where(grew, size, torch.minimum(smallest, size), out=smallest)

        rows, entries = (torch.arange(number, device=point.device) for number in (len(point), self.window))
        place = count % self.window
        count += 1
        images[rows, place] = flat
        movements[rows, place] = movement
        # Not a matrix product: of one vector for each row, that takes five times as long on a CPU.
        products = (movements * movement.unsqueeze(1)).sum(2).mul_(entries < count[:, None])
        gram[rows, place] = products
        gram[rows, :, place] = products

        weights = self._weights(gram, (entries < count[:, None]).double())
        plain = grew | ~weights.sum(1).isfinite()
        weights = torch.where(plain[:, None], (entries == place[:, None]).to(weights), weights)
        following = torch.bmm(weights.unsqueeze(1), images)
        return following.view(point.permute(places).shape).permute(inverse(places))

    def _weights(self, gram: Tensor, used: Tensor) -> Tensor:
        """``argmin αᵀGα`` with ``Σα = 1`` over the used entries (the others are 0 in G): solve ``Gα ∝ 1``. ``[n, window]``."""
        scale = gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(torch.finfo(gram.dtype).tiny)
        system = gram.double() / scale.double()[:, None, None]
        system.diagonal(dim1=1, dim2=2).add_(self.regularisation)
        solution = torch.linalg.solve_ex(system, used)[0]
        weights: Tensor = (solution / solution.sum(1, keepdim=True)).to(gram.dtype)
        return weights


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
