"""Architectures: implicit networks that a config can name. One file each."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from jfb.architectures.authors_resnet import AuthorsResNet
from jfb.architectures.implicit_mlp import ImplicitMLP
from jfb.architectures.implicit_resnet import ImplicitResNet
from jfb.architectures.monotone_conv import MonotoneConv
from jfb.architectures.monotone_mlp import MonotoneMLP
from jfb.network import ImplicitNetwork

ARCHITECTURES: dict[str, type[ImplicitNetwork]] = {
    "authors_resnet": AuthorsResNet,
    "implicit_mlp": ImplicitMLP,
    "implicit_resnet": ImplicitResNet,
    "monotone_conv": MonotoneConv,
    "monotone_mlp": MonotoneMLP,
}

NOT_SERVED = ("neural_ode", "augmented_neural_ode")
"""Architectures that exist for comparison alone (``training.rivals``)."""


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
    if name in NOT_SERVED:
        raise ValueError(
            f"architecture.name: {name!r} is not served: it follows a differential equation and has no fixed point to iterate "
            "to; it is there to be compared with (python -m training compare --rivals)"
        )
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture.name: unknown architecture {name!r}, expected one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    try:
        inspect.signature(architecture).bind(tuple(input_shape), classes, **arguments)
    except TypeError as error:
        raise ValueError(f"architecture.arguments: {name}: {error}") from error
    expected = get_type_hints(architecture.__init__)
    for argument, value in arguments.items():
        try:
            TypeAdapter(expected[argument]).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ValueError(f"architecture.arguments.{argument}: {problem}, got {value!r}") from error
    return architecture(tuple(input_shape), classes, **arguments)


__all__ = [
    "ARCHITECTURES",
    "NOT_SERVED",
    "AuthorsResNet",
    "ImplicitMLP",
    "ImplicitResNet",
    "MonotoneConv",
    "MonotoneMLP",
    "build",
]
