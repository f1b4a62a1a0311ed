"""Trace: the states of a streamed request as pictures, few and small enough to send while they iterate."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from app.engine_client.messages import Magnitude

MAX_SIDE = 64
"""Positions per side of a picture; larger states are pooled to their maxima."""
ALL_UNTIL = 128
"""Up to this iteration, all states of a row are sent."""
THEN_EVERY = 32
"""After it, one in this many iterations."""


def trace(states: Tensor, iterations: list[int]) -> list[Magnitude | None]:
    """The magnitudes of the states of m rows; None for an iteration whose state is not sent, or is not finite."""
    found: list[Magnitude | None] = [None] * len(iterations)
    sent = [row for row, iteration in enumerate(iterations) if iteration <= ALL_UNTIL or iteration % THEN_EVERY == 0]
    for row, picture in zip(sent, magnitude(states[sent]).cpu() if sent else (), strict=True):
        peak, (height, width) = float(picture.amax()), picture.shape
        if math.isfinite(peak):
            shares = (picture / peak * 255 if peak else picture).round().to(torch.uint8)
            found[row] = Magnitude(height, width, peak, shares.numpy().tobytes())
    return found


def magnitude(states: Tensor) -> Tensor:
    """The L2 norm over the channels at each position, ``[m, height, width]``, neither side above ``MAX_SIDE``.

    Args:
        states: ``[m, channels, height, width]``, or ``[m, entries]``, whose positions are the entries, in one line.
    """
    positions = states if states.dim() == 4 else states.flatten(1)[:, None, None]
    norms = positions.float().norm(dim=1)
    return F.adaptive_max_pool2d(norms, [min(side, MAX_SIDE) for side in norms.shape[1:]])
