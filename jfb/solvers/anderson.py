"""Anderson acceleration, row by row."""

import torch
from torch import Tensor

from jfb.solvers.solver import Memory, Solver


class Anderson(Solver):
    """Combine the last images so that the combined residual is smallest (Walker and Ni, 2011, type II, no damping).

    With ``f_i = T(x_i) − x_i``, the next point is ``Σ α_i T(x_i)`` where α minimises ``‖Σ α_i f_i‖`` subject to
    ``Σ α_i = 1``. Each row has its own history and its own α. The Gram matrix of the ``f_i`` is kept and brought up to
    date by one product per iteration.

    Safeguard: a row whose residual grew forgets its history and takes a plain Picard step, so a map that does not suit
    acceleration costs little more than plain iteration.

    It pays where iteration is slow (γ near 1, tight tolerances). It costs ``2 · window`` state-sized reads per
    iteration, so a network that converges in a handful of steps is better served by Picard.

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
            "movements": point.new_zeros(rows, self.window, size),
            "gram": point.new_zeros(rows, self.window, self.window),
            "count": torch.zeros(rows, dtype=torch.int64, device=point.device),
            "smallest": point.new_full((rows,), torch.inf),
        }

    def propose(self, memory: Memory, point: Tensor, image: Tensor) -> Tensor:
        images, movements, gram, count, smallest = (memory[name] for name in ("images", "movements", "gram", "count", "smallest"))
        places = memory_order(point)
        flat_image = image.permute(places).flatten(1)
        movement = flat_image - point.permute(places).flatten(1)
        size = torch.linalg.vector_norm(movement, dim=1)
        grew = size > smallest
        count.masked_fill_(grew, 0)
        gram.masked_fill_(grew[:, None, None], 0)
        torch.minimum(smallest, size, out=smallest)
        torch.where(grew, size, smallest, out=smallest)

        rows = torch.arange(point.shape[0], device=point.device)
        place = count % self.window
        count += 1
        used = torch.arange(self.window, device=point.device) < count[:, None]
        images[rows, place] = flat_image
        movements[rows, place] = movement
        # Not a matrix product: of one vector for each row, that takes five times as long on a CPU.
        products = (movements * movement.unsqueeze(1)).sum(2).mul_(used)
        gram[rows, place] = products
        gram[rows, :, place] = products

        combined = torch.bmm(self._weights(gram, used).unsqueeze(1), images).squeeze(1)
        plain = (grew | ~combined.sum(1).isfinite()).unsqueeze(1)
        following = torch.where(plain, flat_image, combined)
        return following.view(point.permute(places).shape).permute(inverse(places))

    def _weights(self, gram: Tensor, used: Tensor) -> Tensor:
        """``argmin αᵀGα`` with ``Σα = 1`` over the used entries (the others are 0 in G): solve ``Gα ∝ 1``. ``[n, window]``."""
        scale = gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(torch.finfo(gram.dtype).tiny)
        system = gram.double() / scale.double()[:, None, None]
        system.diagonal(dim1=1, dim2=2).add_(self.regularisation)
        solution = torch.linalg.solve_ex(system, used.double())[0]
        weights: Tensor = (solution / solution.sum(1, keepdim=True)).to(gram.dtype)
        return weights


def inverse(order: list[int]) -> list[int]:
    """The permutation that undoes another."""
    return sorted(range(len(order)), key=order.__getitem__)


def memory_order(tensor: Tensor) -> list[int]:
    """The dimensions of rows ``[n, ...]`` in the order in which they lie in memory, so that flattening does not copy."""
    return [0, *sorted(range(1, tensor.dim()), key=tensor.stride, reverse=True)]
