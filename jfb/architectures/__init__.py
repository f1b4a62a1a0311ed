"""Architectures: implicit networks that a config can name. One file each."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jfb.architectures.implicit_mlp import ImplicitMLP
from jfb.architectures.implicit_resnet import ImplicitResNet
from jfb.network import ImplicitNetwork

ARCHITECTURES: dict[str, type[ImplicitNetwork]] = {
    "implicit_mlp": ImplicitMLP,
    "implicit_resnet": ImplicitResNet,
}


def build(name: str, input_shape: Sequence[int], classes: int, arguments: Mapping[str, Any]) -> ImplicitNetwork:
    """Build an architecture by name, with fresh weights.

    Args:
        name: a key of ``ARCHITECTURES``.
        input_shape: of one raw input.
        classes: how many, at least 1.
        arguments: keyword arguments of the architecture.

    Raises:
        ValueError: for an unknown name, an unknown or missing argument, or one that the architecture refuses.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture.name: unknown architecture {name!r}, expected one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    try:
        inspect.signature(architecture).bind(tuple(input_shape), classes, **arguments)
    except TypeError as error:
        raise ValueError(f"architecture.arguments: {name}: {error}") from error
    return architecture(tuple(input_shape), classes, **arguments)


__all__ = ["ARCHITECTURES", "ImplicitMLP", "ImplicitResNet", "build"]
