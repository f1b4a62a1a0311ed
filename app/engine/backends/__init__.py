"""Backends: what computes the three maps, and the choice of the fastest at loading."""

from app.engine.backends.backend import Backend, BFloat16Backend, TorchBackend
from app.engine.backends.candidates import candidates, low_precision
from app.engine.backends.choice import Choice, choose
from app.engine.backends.fixed_batch import FixedBatch
from app.engine.backends.tf32 import TF32Backend

__all__ = [
    "BFloat16Backend",
    "Backend",
    "Choice",
    "FixedBatch",
    "TF32Backend",
    "TorchBackend",
    "candidates",
    "choose",
    "low_precision",
]
