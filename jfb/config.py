"""ModelConfig: what config.json in a model's folder says."""

from collections.abc import Collection
from difflib import get_close_matches
from enum import StrEnum
from math import isfinite
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

FORMAT_VERSION: Literal[1] = 1

SOLVER_NAMES = ("picard", "anderson", "forward_backward", "peaceman_rachford")
"""The solvers that a config may name; ``jfb.solvers.SOLVERS`` maps each to its class."""


class ResidualNorm(StrEnum):
    """The three ways to measure ``u_k - u_{k-1}``, each a number per row.

    * ``absolute``: L2 over all latent entries (Algorithm 1 of the paper);
    * ``relative``: that, divided by the L2 norm of ``u_k``; a tolerance means the same for every model;
    * ``channel_max``: largest over positions of the L2 norm over channels (the paper's authors' programs). A state
      without positions has one position.
    """

    ABSOLUTE = "absolute"
    RELATIVE = "relative"
    CHANNEL_MAX = "channel_max"


class Strict(BaseModel):
    """A frozen model in which unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ArchitectureSpec(Strict):
    """Which class the network is (``jfb.architectures.find``), and the arguments it was built with."""

    name: str
    arguments: dict[str, JsonValue] = {}


class InputSpec(Strict):
    """What one raw input is: clients send it so, normalisation is inside the network."""

    shape: tuple[int, ...] = Field(min_length=1)
    """Of one input; images are ``(channels, height, width)``."""
    kind: Literal["image", "vector"]
    """Whether a PNG or JPEG can be turned into an input."""
    dtype: Literal["float32", "uint8"] = "float32"
    """Of the values as the model takes them; clients may send integers for floats."""
    low: float | None = None
    high: float | None = None
    """Bounds of the values, inclusive; images have both, vectors may have neither."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(side < 1 for side in self.shape):
            raise ValueError(f"shape: expected positive sides, got {list(self.shape)}")
        if self.kind == "image" and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise ValueError(f"shape: an image has shape [1 or 3, height, width], got {list(self.shape)}")
        if self.kind == "image" and (self.low is None or self.high is None):
            raise ValueError("low, high: an image needs both bounds of its values")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low, high: expected low < high, got {self.low} and {self.high}")
        return self


class LabelCalibration(Strict):
    """What held-out data said of ending rows as soon as their label is settled: see ``jfb.label_stop``.

    The rest of the iteration was Picard's, and what an exact fixed point's label is was found by iterating on.
    """

    safety: float = Field(gt=0)
    """Factor on the bound."""
    lipschitz: float = Field(gt=0)
    """The most that a difference between two logits changed per unit that the state moved."""
    tolerance: float = Field(gt=0)
    """That ended the rows whose label stayed open."""
    validation_inputs: int = Field(ge=1)
    """That safety and lipschitz were chosen on."""
    validation_differing: int = Field(ge=0)
    """Those whose label was not the exact fixed point's."""
    inputs: int = Field(ge=1)
    """That the choice was tested on."""
    differing: int = Field(ge=0)
    iterations: float = Field(ge=1)
    """Mean of them."""


class Serving(Strict):
    """How the fixed point is found unless a request says otherwise."""

    solver: str = "picard"
    tolerance: float = Field(default=1e-3, gt=0)
    max_iterations: int = Field(default=100, ge=1)
    residual_norm: ResidualNorm = ResidualNorm.RELATIVE
    label_calibration: LabelCalibration | None = Field(default=None, exclude_if=lambda value: value is None)
    """Without one, files are as they were before there was any."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.solver not in SOLVER_NAMES:
            raise ValueError(f"solver: {must_be_one_of(SOLVER_NAMES, self.solver)}")
        if not isfinite(self.tolerance):
            raise ValueError(f"tolerance: expected a finite number, got {self.tolerance}")
        return self


class ModelConfig(Strict):
    """The whole of ``config.json``."""

    format_version: Literal[1] = FORMAT_VERSION
    architecture: ArchitectureSpec
    input: InputSpec
    classes: list[str] = Field(min_length=1)
    """Labels, in the order of the logits."""
    serving: Serving = Serving()
    provenance: dict[str, Any] = {}
    """Where the model comes from: recipe, seed, data, library versions, date. For people."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: expected distinct labels")
        return self


def must_be_one_of(known: Collection[str], got: str) -> str:
    """The error message for an unknown name: it lists the known names and suggests the nearest one."""
    nearest = get_close_matches(got, known, n=1)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"must be one of {', '.join(known)} (got {got!r}{suggestion})"
