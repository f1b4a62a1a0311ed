"""Status: why a row stopped iterating."""

from enum import StrEnum


class Status(StrEnum):
    """Why a row stopped iterating; clients see these values."""

    CONVERGED = "converged"
    """The residual is at or under the tolerance."""
    LABEL_STABLE = "label_stable"
    """The label cannot change any more (``jfb.label_stop``). Only with label stops."""
    MAX_ITERATIONS = "max_iterations"
    """The cap was reached first; the answer is read from the last iterate."""
    DEADLINE = "deadline"
    """The deadline passed first; the answer is read from the last iterate. Only the server sets it."""
    DIVERGED = "diverged"
    """An iterate is not finite. There is no answer."""
    CANCELLED = "cancelled"
    """The client has gone. Only the server sets it."""
