"""Rows: batches that shrink without being rebuilt."""

import torch
from torch import Tensor


def gaps(ended: Tensor) -> tuple[Tensor, Tensor]:
    """Where ended rows leave gaps, and which rows from the end fill them.

    Args:
        ended: Boolean, shape ``[n]``.

    Returns:
        Two int64 tensors of one length: places among the first ``n - ended.sum()``, and rows behind them.
    """
    keep = ended.shape[0] - int(ended.sum())
    return ended[:keep].nonzero().squeeze(1), (~ended[keep:]).nonzero().squeeze(1) + keep


def close_gaps(ended: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Drop the ended rows by moving rows from the end into their places.

    The cost grows with the number of rows that *ended*, not with the size of the batch. Order is not kept, so callers
    carry an index with their rows. The tensors are changed in place.

    Args:
        ended: Boolean, shape ``[n]``.
        tensors: each with first dimension n.

    Returns:
        For each tensor, a view of its first ``n - ended.sum()`` rows: those that go on.
    """
    holes, movers = gaps(ended)
    for tensor in tensors:
        tensor[holes] = tensor[movers]
    keep = len(ended) - int(ended.sum())
    return tuple(tensor[:keep] for tensor in tensors)


def per_row(name: str, value: float | Tensor, rows: int, like: Tensor) -> Tensor:
    """Spread a number, or one number per row, to shape ``[rows]`` with the dtype and device of ``like``.

    Raises:
        ValueError: if a tensor of another shape is given.
    """
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if tensor.dim() == 0:
        return tensor.expand(rows).clone()
    if tensor.shape != (rows,):
        raise ValueError(f"{name}: expected a number or shape [{rows}], one per row, got shape {list(tensor.shape)}")
    return tensor.clone()
