"""Data: from what a recipe names to training, validation and test parts in memory."""

from training.data.sources import Split, check, read
from training.data.splits import Data, load_data, load_evaluation_data, load_parts, measure_normalisation

__all__ = ["Data", "Split", "check", "load_data", "load_evaluation_data", "load_parts", "measure_normalisation", "read"]
