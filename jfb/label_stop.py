"""LabelStop: decide when the rest of the iteration cannot change a row's label any more."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from jfb.config import LabelCalibration, ResidualNorm, Serving
from jfb.network import ImplicitNetwork
from jfb.norms import residual
from jfb.rows import first_numbers
from jfb.solvers import SOLVERS, Memory, Solver

TOLERANCE = 1e-4
"""Default tolerance for rows whose label is never certain: small enough to change few labels, large enough for float32."""


class Kind(StrEnum):
    """How far a bound can be trusted; clients see these values."""

    GUARANTEE = "guarantee"
    """The network contracts by construction, so the label is that of the exact fixed point (up to rounding)."""
    ESTIMATE = "estimate"
    """The bound is estimated from the row's iteration so far and from held-out data."""


@dataclass(frozen=True)
class Stability:
    """The certainty of the labels of n rows, each against the rival that could overtake it first."""

    margin: Tensor
    """``z_i − z_j``: the lead of the label's logit, shape ``[n]``; infinite where there is no rival."""
    bound: Tensor
    """How much the margin can still shrink, shape ``[n]``; infinite where nothing is known yet."""

    @property
    def stable(self) -> Tensor:
        """Whether the margin exceeds the bound: Boolean ``[n]``, false where either is NaN."""
        return self.margin > self.bound


class LabelStop:
    """Bound the effect of the rest of the iteration on the logits.

    Let ``m_k = ‖T(u_{k−1}) − u_{k−1}‖`` be a row's movement, *whatever u_{k−1} is*: any solver may have proposed it. If
    ``u_k = T(u_{k−1})`` is at most ``c · m_k`` away from the fixed point, and ``z_i − z_j`` changes by at most ``L_ij`` per unit
    of that distance, then logit i still leads logit j at the fixed point where ``z_i − z_j > L_ij · c · m_k``. So it supports
    every solver that evaluates T itself.

    * A **guarantee** takes γ and L from the network, which proves them; ``c = γ / (1 − γ)`` (Banach).
    * An **estimate** is for networks that contract without proof. ``L · c`` is one number: what a label's lead lost at most until
      the exact fixed point, per unit of movement, in 999 of 1,000 iterations on held-out data, times a safety factor that was
      calibrated there. It needs an iteration that moves less than the one before, so it starts at the second.

    The norm is L2, unless the network proves its bounds in another one. Rows are independent, and the memory is per row.

    Args:
        kind: guarantee or estimate.
        lipschitz: ``L_ij``, shape ``[classes, classes]``, or one number for all pairs.
        distance: c, at least 0.
        safety: factor on the bound, positive.
        norm: of movements, in which L and γ hold: ``absolute`` (L2) or ``max``.
    """

    def __init__(
        self,
        kind: Kind,
        lipschitz: Tensor | float,
        distance: float = 1.0,
        safety: float = 1.0,
        norm: ResidualNorm = ResidualNorm.ABSOLUTE,
    ) -> None:
        self.kind = kind
        self.norm = norm
        self._lipschitz = torch.as_tensor(lipschitz)
        self._tables: dict[tuple[Any, ...], Tensor] = {}
        self._distance = distance
        self._safety = safety

    @classmethod
    def guarantee(cls, network: ImplicitNetwork) -> Self | None:
        """Make the guarantee of a network that bounds its contraction and its readout; None for any other network."""
        contraction, lipschitz = network.contraction_bound(), network.readout_lipschitz()
        if contraction is None or lipschitz is None or not 0 <= contraction < 1:
            return None
        return cls(Kind.GUARANTEE, lipschitz, contraction / (1 - contraction), norm=network.bound_norm)

    @classmethod
    def estimate(cls, calibration: LabelCalibration) -> Self:
        """Make the estimate that was calibrated on held-out data."""
        return cls(Kind.ESTIMATE, calibration.sensitivity, safety=calibration.safety)

    @classmethod
    def of(cls, network: ImplicitNetwork, serving: Serving) -> Self | None:
        """Make the guarantee if the network has one, else the estimate if it was calibrated, else None."""
        return cls.guarantee(network) or (cls.estimate(serving.label_calibration) if serving.label_calibration else None)

    def supports(self, solver: type[Solver]) -> bool:
        """Whether the bound holds for a solver's iterates."""
        return solver.evaluate is Solver.evaluate  # its next states are T's

    @property
    def solvers(self) -> list[str]:
        """The names of the supported solvers."""
        return [name for name, solver in SOLVERS.items() if self.supports(solver)]

    def start(self, state: Tensor) -> Memory:
        """Return the memory of rows that start at ``state`` (``[n, *state_shape]``), under names that no solver uses."""
        if self.kind is Kind.GUARANTEE:
            return {}
        return {"label_movement": state.new_full((state.shape[0],), torch.inf)}

    def movement(self, state: Tensor, next_state: Tensor) -> Tensor:
        """How far an iteration moved each row, in the stop's norm: ``[n, *state_shape]`` twice to ``[n]``."""
        return residual(state, next_state, self.norm)

    def judge(self, memory: Memory, movement: Tensor, logits: Tensor) -> Stability:
        """Judge rows after an iteration, and update their memory in place.

        Args:
            memory: the rows' memory; it may contain their solver's.
            movement: ``m_k``, shape ``[n]``.
            logits: ``readout(u_k)``, shape ``[n, classes]``.
        """
        # A dozen operations on a few numbers, each of which takes NumPy a third of PyTorch's time; the memory is shared.
        on_host = logits.device.type == "cpu"
        tensors = (movement, logits, self._lipschitz_table(logits), *memory.values())
        moved, scores, lipschitz, *kept = (tensor.numpy() for tensor in tensors) if on_host else tensors
        with np.errstate(all="ignore"):  # the caller ends rows that diverge
            found = self._judge(np if on_host else torch, dict(zip(memory, kept, strict=True)), moved, scores, lipschitz)
        margin, bound = map(torch.from_numpy, found) if on_host else found
        return Stability(margin, bound)

    def _judge(self, xp: Any, memory: Mapping[str, Any], movement: Any, logits: Any, lipschitz: Any) -> tuple[Any, Any]:
        """Compute margins and bounds from arrays of ``xp``, ``numpy`` or ``torch``, with the functions that both have."""
        rows = first_numbers(xp, len(logits), logits)
        label = logits.argmax(1)
        margins = logits[rows, label][:, None] - logits
        margins[rows, label] = xp.inf  # a label is not its own rival
        slopes = lipschitz[label]
        rival = (margins / slopes).argmin(1)
        remaining = self._safety * self._distance * movement
        if self.kind is Kind.ESTIMATE:  # nothing is known of a row that moves no less than before
            before = memory["label_movement"]
            remaining = xp.where(xp.isfinite(before) & (movement < before), remaining, xp.inf)
            before[:] = movement
        return margins[rows, rival], slopes[rows, rival] * remaining

    def _lipschitz_table(self, like: Tensor) -> Tensor:
        """``L``, ``[classes, classes]`` and positive, for logits ``[n, classes]``."""
        key = like.shape[1], like.dtype, like.device
        if key not in self._tables:
            table = self._lipschitz.to(like).expand(like.shape[1], like.shape[1])
            self._tables[key] = table.clamp_min(torch.finfo(like.dtype).tiny)
        return self._tables[key]


def label_tolerance(serving: Serving) -> float:
    """The default tolerance of a request with label stops: that of the calibration, else a small one."""
    if serving.label_calibration is not None:
        return serving.label_calibration.tolerance
    return min(serving.tolerance, TOLERANCE)
