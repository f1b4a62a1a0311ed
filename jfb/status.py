"""How a row ends."""

from enum import StrEnum


class Status(StrEnum):
    """The word for why a row stopped iterating; these words go to clients as they are."""

    CONVERGED = "converged"
    """The residual is at or under the tolerance."""
    LABEL_STABLE = "label_stable"
    """The label cannot change any more (``jfb.label_stop``); the answer is read from the last iterate. Only if asked for."""
    MAX_ITERATIONS = "max_iterations"
    """The cap was reached first; the answer is read from the last iterate."""
    DEADLINE = "deadline"
    """Time ran out first; the answer is read from the last iterate. Only a server sets it."""
    DIVERGED = "diverged"
    """An iterate is not finite. There is no answer."""
    CANCELLED = "cancelled"
    """Nobody waits for the answer any more. Only a server sets it."""
