"""What can go wrong while training; each message says what to change."""


class TrainingError(Exception):
    """Base of the errors that a user can cause and mend; the command line prints them without a traceback."""


class RecipeError(TrainingError):
    """A recipe that cannot be used: the message names the file, the key, the value and what was expected."""


class DataError(TrainingError):
    """A data set that cannot be read, or does not have what the recipe says."""


class NonFiniteLossError(TrainingError):
    """The loss is NaN or infinite, so the weights are worth nothing from here on."""


class ForeignFileError(TrainingError):
    """A file of weights from elsewhere that cannot be imported: the message names the file and what was expected."""


class ModelError(TrainingError):
    """A model that is not in the store, cannot be loaded, or does not fit the data."""


class HubError(TrainingError):
    """The Hugging Face hub was not reached, or refused."""
