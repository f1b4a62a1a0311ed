"""Backends: what computes the three maps. One runtime a file."""

from app.engine.backends.backend import Backend
from app.engine.backends.torch import TorchBackend

__all__ = ["Backend", "TorchBackend"]
