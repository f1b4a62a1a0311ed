"""Errors that a user can cause and fix; each message says what to change."""

from collections.abc import Collection
from difflib import get_close_matches


class TrainingError(Exception):
    """Base of the errors that a user can fix; the command line prints them without a traceback."""


class RecipeError(TrainingError):
    """An invalid recipe; the message names the file, the key, the value and what is allowed."""


class DataError(TrainingError):
    """A data set that cannot be read, or does not have what the recipe names."""


class NonFiniteLossError(TrainingError):
    """A loss that is NaN or infinite, after which the weights are worthless."""


class ForeignFileError(TrainingError):
    """A file of weights from another project that cannot be imported."""


class ModelError(TrainingError):
    """A model that is not in the store, cannot be loaded, or does not fit the data."""


class HubError(TrainingError):
    """The Hugging Face hub could not be reached, or refused the request."""


def unknown_name(kind: str, name: str, known: Collection[str]) -> str:
    """Return the message for an unknown name: which names exist, and the nearest one if any is near."""
    nearest = get_close_matches(name, known, n=1)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r} (known: {', '.join(known)}){suggestion}"
