"""The mathematics of implicit networks: fixed points, how to find them, and how to differentiate them."""

from jfb.checkpoint import Checkpoint, CheckpointError, load
from jfb.config import ModelConfig
from jfb.label_stop import LabelStop
from jfb.network import ImplicitNetwork
from jfb.norms import ResidualNorm, residual
from jfb.predict import Prediction, predict
from jfb.solve import Solution, solve
from jfb.status import Status

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ImplicitNetwork",
    "LabelStop",
    "ModelConfig",
    "Prediction",
    "ResidualNorm",
    "Solution",
    "Status",
    "load",
    "predict",
    "residual",
    "solve",
]
