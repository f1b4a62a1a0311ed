"""LabelStop: when a row's label cannot change any more, whatever the rest of the iteration does."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

from jfb.config import LabelCalibration, Serving
from jfb.network import ImplicitNetwork
from jfb.norms import row_norms
from jfb.solvers import SOLVERS, Memory, Picard, Solver

TOLERANCE = 1e-4
"""That ends the rows whose label stays open: so small that it changes few of those, and large enough for float32 to reach."""


class Kind(StrEnum):
    """What a bound is worth; these words go to clients as they are."""

    GUARANTEE = "guarantee"
    """The network contracts by construction, and so the label is that of the exact fixed point (up to rounding)."""
    ESTIMATE = "estimate"
    """The bound rests on what a row's iteration did so far, and on what was seen on held-out data."""


@dataclass(frozen=True)
class Stability:
    """How sure the labels of n rows are, each against the rival that could overtake it first."""

    margin: Tensor
    """``z_i − z_j``, by how much the label's logit leads, shape ``[n]``; infinite where there is no rival."""
    bound: Tensor
    """By how much that can still shrink, shape ``[n]``; infinite where nothing is known yet."""

    @property
    def stable(self) -> Tensor:
        """Whether the margin exceeds the bound: Boolean ``[n]``, false where either is not a number."""
        return self.margin > self.bound


class LabelStop:
    """Bounds what the rest of the iteration can do to the logits.

    Let ``m_k = ‖T(u_{k−1}) − u_{k−1}‖₂`` be a row's movement. If T contracts with factor γ (L2), then its fixed point is at most
    ``γ / (1 − γ) · m_k`` away from ``u_k = T(u_{k−1})`` (Banach), *whatever u_{k−1} is*. If ``‖z_i − z_j‖``
    changes by at most ``L_ij`` per unit of movement, then logit i still leads logit j at the fixed point where
    ``z_i − z_j > L_ij · γ / (1 − γ) · m_k``.

    * A **guarantee** takes γ and L from the network, which proves them. It holds for every solver that evaluates T itself.
    * An **estimate** takes for γ the larger of the last two ratios ``m_k / m_{k−1}`` of plain iteration, so it knows nothing
      before the third iteration, for L what was seen on held-out data, and multiplies with a safety factor that was
      calibrated there. Networks that contract without proof, or only after a while, need one. It goes with Picard
      alone: the ratios of an accelerated sequence say what the acceleration did, not how far there is to go.

    Everything is in the row's own terms, and what is remembered is rows.

    Args:
        kind: which of the two.
        lipschitz: ``L_ij``, shape ``[classes, classes]``, or one number for all pairs.
        contraction: γ in [0, 1); None is observed, row by row.
        safety: factor on the bound, positive.
    """

    def __init__(self, kind: Kind, lipschitz: Tensor | float, contraction: float | None = None, safety: float = 1.0) -> None:
        self.kind = kind
        self._lipschitz = torch.as_tensor(lipschitz)
        self._contraction = contraction
        self._safety = safety

    @classmethod
    def guarantee(cls, network: ImplicitNetwork) -> Self | None:
        """That of a network which proves it contracts, and how steep its readout is; None for any other."""
        contraction, lipschitz = network.contraction_bound(), network.readout_lipschitz()
        if contraction is None or lipschitz is None or not 0 <= contraction < 1:
            return None
        return cls(Kind.GUARANTEE, lipschitz, contraction)

    @classmethod
    def estimate(cls, calibration: LabelCalibration) -> Self:
        """What was calibrated on held-out data."""
        return cls(Kind.ESTIMATE, calibration.lipschitz, safety=calibration.safety)

    @classmethod
    def of(cls, network: ImplicitNetwork, serving: Serving) -> Self | None:
        """The guarantee where the network gives one, else the estimate where it was calibrated, else None."""
        return cls.guarantee(network) or (cls.estimate(serving.label_calibration) if serving.label_calibration else None)

    def supports(self, solver: type[Solver]) -> bool:
        """Whether the bound holds for the iterates of a solver."""
        if self.kind is Kind.GUARANTEE:
            return solver.evaluate is Solver.evaluate  # its next states are T's
        return issubclass(solver, Picard)

    @property
    def solvers(self) -> list[str]:
        """The names of those that it goes with."""
        return [name for name, solver in SOLVERS.items() if self.supports(solver)]

    def start(self, state: Tensor) -> Memory:
        """Return the memory of rows that start at ``state`` (``[n, *state_shape]``), by names that no solver uses."""
        if self._contraction is not None:
            return {}
        return {name: state.new_full((state.shape[0],), torch.inf) for name in ("label_movement", "label_ratio")}

    def judge(self, memory: Memory, state: Tensor, next_state: Tensor, logits: Tensor) -> Stability:
        """Judge rows after an iteration, and bring their memory up to date in place.

        Args:
            memory: of these rows, their solver's may be in it.
            state: ``u_{k−1}``, shape ``[n, *state_shape]``.
            next_state: ``u_k``, of the same shape.
            logits: ``readout(next_state)``, shape ``[n, classes]``.
        """
        remaining = self._safety * self._remaining(memory, row_norms(next_state - state))
        label = logits.argmax(1, keepdim=True)
        margins = logits.gather(1, label) - logits
        lipschitz = self._lipschitz.to(logits).expand(logits.shape[1], logits.shape[1])[label.squeeze(1)]
        lipschitz = lipschitz.clamp_min(torch.finfo(logits.dtype).tiny)
        margins.scatter_(1, label, torch.inf)  # a label is no rival of its own
        rival = (margins / lipschitz).argmin(1, keepdim=True)
        margin, slope = (values.gather(1, rival).squeeze(1) for values in (margins, lipschitz))
        return Stability(margin, slope * remaining)

    def _remaining(self, memory: Memory, movement: Tensor) -> Tensor:
        """``γ / (1 − γ) · m_k``, infinite where γ is one or more, or not known yet."""
        if self._contraction is not None:
            return self._contraction / (1 - self._contraction) * movement
        last_movement, last_ratio = memory["label_movement"], memory["label_ratio"]
        ratio = torch.where(last_movement.isfinite(), movement / last_movement, torch.inf)
        rate = torch.maximum(ratio, last_ratio)
        last_movement.copy_(movement)
        last_ratio.copy_(ratio)
        return torch.where(rate < 1, rate / (1 - rate) * movement, torch.inf)


def label_tolerance(serving: Serving) -> float:
    """The tolerance of a request for label stops that names none: that of the calibration, or small."""
    if serving.label_calibration is not None:
        return serving.label_calibration.tolerance
    return min(serving.tolerance, TOLERANCE)
