"""Backends: what computes the three maps. One runtime a file."""

from app.engine.backends.backend import Backend
from app.engine.backends.bfloat16 import BFloat16Backend
from app.engine.backends.candidates import BackendName, candidates, low_precision
from app.engine.backends.choice import Choice, Precision, choose
from app.engine.backends.torch import TorchBackend

__all__ = [
    "BFloat16Backend",
    "Backend",
    "BackendName",
    "Choice",
    "Precision",
    "TorchBackend",
    "candidates",
    "choose",
    "low_precision",
]
