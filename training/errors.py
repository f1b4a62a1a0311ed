"""Errors that a user can cause and fix; each message says what to change."""


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
