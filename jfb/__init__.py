"""The mathematics of implicit networks: fixed points, how to find them, and how to differentiate them.

Names are imported on first use, so that a program which only reads a config or the model store does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jfb.architectures import register
    from jfb.checkpoint import Checkpoint, load, save
    from jfb.config import ModelConfig, ResidualNorm
    from jfb.gradients.gradient import Search
    from jfb.gradients.jfb import JFB
    from jfb.hub import from_pretrained, push_to_hub
    from jfb.label_stop import LabelStop
    from jfb.layer import fixed_point
    from jfb.network import ImplicitNetwork
    from jfb.norms import residual
    from jfb.prediction import Prediction, predict
    from jfb.solution import Solution, solve
    from jfb.status import Status
    from jfb.store import CheckpointError, ModelVersion

__version__ = "0.1.0"
"""Of the package, too: pyproject.toml reads it here, so that it is known in a checkout that is not installed."""

__all__ = [
    "JFB",
    "Checkpoint",
    "CheckpointError",
    "ImplicitNetwork",
    "LabelStop",
    "ModelConfig",
    "ModelVersion",
    "Prediction",
    "ResidualNorm",
    "Search",
    "Solution",
    "Status",
    "fixed_point",
    "from_pretrained",
    "load",
    "predict",
    "push_to_hub",
    "register",
    "residual",
    "save",
    "solve",
]

_MODULES = {
    "JFB": "gradients.jfb",
    "Checkpoint": "checkpoint",
    "CheckpointError": "store",
    "ImplicitNetwork": "network",
    "LabelStop": "label_stop",
    "ModelConfig": "config",
    "ModelVersion": "store",
    "Prediction": "prediction",
    "ResidualNorm": "config",
    "Search": "gradients.gradient",
    "Solution": "solution",
    "Status": "status",
    "fixed_point": "layer",
    "from_pretrained": "hub",
    "load": "checkpoint",
    "predict": "prediction",
    "push_to_hub": "hub",
    "register": "architectures",
    "residual": "norms",
    "save": "checkpoint",
    "solve": "solution",
}
"""The module that defines each public name. No module may share its name: importing it would hide the function."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
