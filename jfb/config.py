"""ModelConfig: the content of a model's ``config.json``. It needs pydantic and no torch."""

from collections.abc import Collection
from difflib import get_close_matches
from enum import StrEnum
from math import isfinite, prod
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

FORMAT_VERSION: Literal[1] = 1
MAX_CLASSES = 8192
"""The distances between the rows of a readout take the square of it."""
MAX_INPUT_NUMBERS = 2**22
"""Of one input; an image of 1024 x 1024 pixels in colour has three quarters of it."""

SOLVER_NAMES = ("picard", "anderson", "forward_backward", "peaceman_rachford", "mixing")
"""The solvers that a config may name; ``jfb.solvers.SOLVERS`` maps each to its class."""


class ResidualNorm(StrEnum):
    """How to measure ``u_k - u_{k-1}``: one number per row.

    * ``absolute``: L2 over all latent entries (Algorithm 1 of the paper);
    * ``relative``: ``absolute`` divided by the L2 norm of ``u_k``, so that a tolerance means the same for every model;
    * ``channel_max``: the largest over positions of the L2 norm over channels (the authors' code). A vector has one position;
    * ``max``: the largest absolute value over all latent entries.
    """

    ABSOLUTE = "absolute"
    RELATIVE = "relative"
    CHANNEL_MAX = "channel_max"
    MAX = "max"


class Strict(BaseModel):
    """A frozen model in which unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ArchitectureSpec(Strict):
    """The name of the network's class (``jfb.architectures.find``), and the arguments that it is built with."""

    name: str
    arguments: dict[str, JsonValue] = {}


class InputSpec(Strict):
    """One raw input, as clients send it: normalisation is part of the network."""

    shape: tuple[int, ...] = Field(min_length=1, max_length=8)
    """Shape of one input; ``(channels, height, width)`` for images."""
    kind: Literal["image", "vector"]
    """``image`` if a PNG or JPEG file can be converted into an input."""
    dtype: Literal["float32", "uint8"] = "float32"
    """Type of the values; clients may send integers for ``float32``."""
    low: float | None = None
    """Inclusive lower bound of the values; required for images."""
    high: float | None = None
    """Inclusive upper bound of the values; required for images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(side < 1 for side in self.shape):
            raise ValueError(f"shape: must be positive integers (got {list(self.shape)})")
        if prod(self.shape) > MAX_INPUT_NUMBERS:
            raise ValueError(f"shape: must have at most {MAX_INPUT_NUMBERS} numbers (got {list(self.shape)})")
        if self.kind == "image" and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise ValueError(f"shape: must be [1 or 3, height, width] for images (got {list(self.shape)})")
        if self.kind == "image" and (self.low is None or self.high is None):
            raise ValueError("low, high: must both be given for images")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low: must be below high (got low {self.low} and high {self.high})")
        return self


class LabelCalibration(Strict):
    """How label stops (``jfb.label_stop``) did on held-out data, with every solver that they support.

    A label differs if it is not the label at the exact fixed point, which was found by iterating further.
    """

    safety: float = Field(gt=0)
    """Safety factor of the bound."""
    sensitivity: float = Field(gt=0)
    """What a label's lead lost at most until the exact fixed point, in 999 of 1,000 iterations, per unit that the state moved."""
    tolerance: float = Field(gt=0)
    """Tolerance at which rows stopped whose label was never certain."""
    validation_inputs: int = Field(ge=1)
    """Number of inputs on which ``safety`` and ``sensitivity`` were chosen."""
    validation_differing: int = Field(ge=0)
    """Number of those whose label differs."""
    inputs: int = Field(ge=1)
    """Number of inputs on which the choice was tested."""
    differing: int = Field(ge=0)
    """Number of those whose label differs."""
    iterations: float = Field(ge=1)
    """Mean number of iterations on the test inputs."""


class Serving(Strict):
    """How the fixed point is found, unless a request says otherwise."""

    solver: str = "picard"
    tolerance: float = Field(default=1e-3, gt=0)
    max_iterations: int = Field(default=100, ge=1)
    residual_norm: ResidualNorm = ResidualNorm.RELATIVE
    label_calibration: LabelCalibration | None = Field(default=None, exclude_if=lambda value: value is None)
    """Left out of the file if there is none."""

    @field_validator("label_calibration", mode="before")
    @classmethod
    def _drop_an_old_calibration(cls, value: object) -> object:
        """Ignore one for Picard iteration only, as there were before; ``python -m training evaluate`` makes another."""
        return None if isinstance(value, dict) and "lipschitz" in value else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.solver not in SOLVER_NAMES:
            raise ValueError(f"solver: {must_be_one_of(SOLVER_NAMES, self.solver)}")
        if not isfinite(self.tolerance):
            raise ValueError(f"tolerance: must be finite (got {self.tolerance})")
        return self


class LearnedStartSpec(Strict):
    """The arguments of ``jfb.learned_start.LearnedStart``, whose weights are with the network's."""

    injection_shape: tuple[int, ...] = Field(min_length=1, max_length=8)
    state_shape: tuple[int, ...] = Field(min_length=1, max_length=8)
    bottleneck: int = Field(ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, shape in (("injection_shape", self.injection_shape), ("state_shape", self.state_shape)):
            if any(side < 1 for side in shape):
                raise ValueError(f"{name}: must be positive integers (got {list(shape)})")
        return self


class ModelConfig(Strict):
    """The content of ``config.json``."""

    format_version: Literal[1] = FORMAT_VERSION
    architecture: ArchitectureSpec
    input: InputSpec
    classes: list[str] = Field(min_length=1, max_length=MAX_CLASSES)
    """Labels, in the order of the logits."""
    serving: Serving = Serving()
    learned_start: LearnedStartSpec | None = Field(default=None, exclude_if=lambda value: value is None)
    """Left out of the file if there is none."""
    provenance: dict[str, Any] = {}
    """Where the model comes from, for people: recipe, seed, data, library versions, date."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: must be distinct")
        return self


def must_be_one_of(known: Collection[str], got: str) -> str:
    """The error message for an unknown name: it lists the known names and suggests the nearest one."""
    nearest = get_close_matches(got, known, n=1)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"must be one of {', '.join(known) or 'none'} (got {got!r}{suggestion})"
