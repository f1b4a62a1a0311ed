"""Rows: batches that shrink without being rebuilt."""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def gaps(ended: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the gaps that ended rows leave, and the rows from the end that fill them.

    Args:
        ended: shape ``[n]``; on the host, because shapes depend on the number of ended rows.

    Returns:
        Two arrays of equal length: indices among the first ``n - ended.sum()`` rows, and indices of later rows.
    """
    keep = len(ended) - int(np.count_nonzero(ended))
    return np.flatnonzero(ended[:keep]), keep + np.flatnonzero(~ended[keep:])


def close_gaps(ended: NDArray[np.bool_], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Drop the ended rows by moving rows from the end into their places.

    The cost grows with the number of rows that *ended*, not with the size of the batch. Order is not kept, so callers keep an
    index with their rows. The tensors are changed in place.

    Args:
        ended: shape ``[n]``.
        tensors: on one device, each with first dimension n.

    Returns:
        For each tensor, a view of its first ``n - ended.sum()`` rows: the ones that go on.
    """
    holes, movers = (to_device(places, tensors[0].device) for places in gaps(ended))
    for tensor in tensors:
        tensor[holes] = tensor[movers]
    keep = len(ended) - int(np.count_nonzero(ended))
    return tuple(tensor[:keep] for tensor in tensors)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device, without waiting for what a GPU is still computing, for which it must be in pinned memory."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def per_row(name: str, value: Tensor, rows: int, like: Tensor) -> Tensor:
    """Expand a number, or one number per row, to shape ``[rows]`` with the dtype and device of ``like``.

    Raises:
        ValueError: if a tensor of another shape is given.
    """
    if value.dim() == 0:
        return like.new_full((rows,), value.item())  # without a copy from the host, which would wait for a GPU
    if value.shape != (rows,):
        raise ValueError(f"{name}: must be a number or have shape [{rows}], one per row (got shape {list(value.shape)})")
    return value.to(like.device, like.dtype, copy=True)


def first_numbers(xp: Any, end: int, like: Any) -> Any:
    """0, 1, … end − 1 as an array of ``xp``, which is ``numpy`` or ``torch``, on the device of ``like``."""
    return _on_host(end) if xp is np else xp.arange(end, device=like.device)


@cache
def _on_host(end: int) -> NDArray[np.int64]:
    """The same array in every iteration."""
    numbers = np.arange(end)
    numbers.flags.writeable = False
    return numbers
