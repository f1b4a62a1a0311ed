"""Isolation: what an error in one request's rows costs the others."""

import math
from collections.abc import Callable

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.backends.backend import Compute

log = structlog.get_logger(__name__)

Fail = Callable[[int, str], None]
"""Called with the number of a request that cannot be computed, and the reason."""


def one_by_one(
    error: Exception,
    compute: Compute,
    like: Tensor,
    requests: NDArray[np.int64],
    fail: Fail,
    *rows: Tensor,
    changed: tuple[Tensor, ...] = (),
) -> Tensor:
    """After an error, compute each request's rows alone, and fail the requests that raise, with NaN as their rows.

    ``compute`` maps ``rows``, then ``changed``, which it may change in place, to rows like ``like``; they are of ``requests``.
    Raises the error if the device is lost.
    """
    if isinstance(error, torch.AcceleratorError):
        raise error
    log.warning("batch failed, computing its requests one by one", error=repr(error), rows=len(requests))
    result = like.new_full((len(requests), *like.shape[1:]), math.nan)
    for number in dict.fromkeys(requests.tolist()):
        own = torch.from_numpy(np.flatnonzero(requests == number))
        parts = [tensor[own] for tensor in changed]
        try:
            result[own] = compute(*(tensor[own] for tensor in rows), *parts)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            fail(number, f"{type(error).__name__}: {error}")
        for tensor, part in zip(changed, parts, strict=True):
            tensor[own] = part
    return result
