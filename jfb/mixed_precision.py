"""Mixed precision: how long an iteration may run in bfloat16 before it goes on in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from jfb.config import ResidualNorm
from jfb.network import ImplicitNetwork
from jfb.norms import residual

Numbers = TypeVar("Numbers", Tensor, NDArray[Any])

ROUNDOFF = 2.0**-8
"""Relative spacing of bfloat16: an entry is stored with a relative error of at most half of it."""
MARGIN = 4.0
"""A row goes on in bfloat16 while its residual is this many times its tolerance, and this many times the effect of rounding."""


def size_in(state: Tensor, norm: ResidualNorm) -> Tensor:
    """Measure states in a residual norm, shape ``[n]``; 1 in the relative norm."""
    if norm is ResidualNorm.RELATIVE:
        return torch.ones(state.shape[0], dtype=state.dtype, device=state.device)
    return residual(torch.zeros_like(state), state, norm)


def low_precision_step(network: ImplicitNetwork, state: Tensor, injection: Tensor) -> Tensor:
    """Apply ``step`` in bfloat16 to states of a higher precision.

    Args:
        network: in evaluation mode, cast to bfloat16; preferably folded.
    """
    return network.step(state.bfloat16(), injection.bfloat16()).to(state.dtype)


@contextmanager
def tensor_float_32() -> Iterator[None]:
    """Let a GPU round the factors of float32 products to TF32, 10 bits: what is launched within, by any thread, does so."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def needs_full_precision(moved: Numbers, size: Numbers, tolerance: Numbers, roundoff: float = ROUNDOFF) -> Numbers:
    """Decide which rows must go on in float32: Boolean ``[n]``.

    Far from the fixed point rounding is harmless: every later iteration multiplies a state's error by γ, and by Banach's theorem
    the iteration converges from any state. Near it, the residual cannot fall below the effect of rounding, about ``roundoff``
    times the state's size.

    Args:
        moved: residuals of an iteration in low precision, shape ``[n]``.
        size: the states' sizes in the same norm (``size_in``), shape ``[n]``.
        tolerance: the rows' tolerances, shape ``[n]``.
        roundoff: relative spacing of the low precision.
    """
    # Negated, so that a row whose residual is NaN goes on in float32 and ends there.
    near: Numbers = ~((moved > MARGIN * tolerance) & (moved > MARGIN * roundoff * size))
    return near
