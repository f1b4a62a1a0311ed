"""Shield: what raises takes down the rows it belongs to, and no others."""

import math
from collections.abc import Callable

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

log = structlog.get_logger(__name__)

Fail = Callable[[int, str], None]
"""Told which job cannot be computed, and why."""


def shielded(
    compute: Callable[..., Tensor],
    like: Tensor,
    jobs: NDArray[np.int64],
    fail: Fail,
    *rows: Tensor,
    changed: tuple[Tensor, ...] = (),
) -> Tensor:
    """Compute rows; if that raises, compute each job's rows alone and fail the jobs that raise, leaving NaN as their rows.

    Args:
        compute: ``rows``, then ``changed``, to rows.
        like: rows that look like the result.
        jobs: whose rows these are, ``[n]``, on the host.
        fail: called once for each job that raises.
        rows: arguments of ``compute``, each ``[n, ...]``.
        changed: more of them, which ``compute`` may change in place.

    Raises:
        torch.AcceleratorError: if the device is lost.
    """
    try:
        return compute(*rows, *changed)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        log.warning("a batch could not be computed; its jobs are tried one at a time", error=repr(error), rows=len(jobs))
    result = like.new_full((len(jobs), *like.shape[1:]), math.nan)
    for id in dict.fromkeys(jobs.tolist()):
        own = torch.from_numpy(np.flatnonzero(jobs == id))
        parts = [tensor[own] for tensor in changed]
        try:
            result[own] = compute(*(tensor[own] for tensor in rows), *parts)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            fail(id, f"{type(error).__name__}: {error}")
        for tensor, part in zip(changed, parts, strict=True):
            tensor[own] = part
    return result
