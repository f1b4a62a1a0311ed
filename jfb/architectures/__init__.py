"""Architectures: implicit networks that a config can name. One file each, and those that installed packages announce."""

import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
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


GROUP = "jfb.architectures"
"""Group of entry points by which an installed package announces architectures of its own, a name and a class each."""


def find(name: str) -> type[ImplicitNetwork]:
    """The class of an architecture: one of ``ARCHITECTURES``, or else one that an installed package announces by that name.

    A config says a name and nothing else, so what is run is what whoever runs the program has installed.

    Raises:
        ValueError: for an unknown name, and for an announcement that does not lead to an implicit network.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    announced = entry_points(group=GROUP)
    if name not in announced.names:
        known = sorted({*ARCHITECTURES, *announced.names})
        raise ValueError(f"unknown architecture {name!r}, expected one of {', '.join(known)}")
    entry = announced[name]
    try:
        found = entry.load()
    except Exception as error:  # a module that is imported may raise anything
        raise ValueError(f"{name!r} is announced as {entry.value}, which cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, ImplicitNetwork)):
        raise ValueError(f"{name!r} is announced as {entry.value}: expected a subclass of jfb.ImplicitNetwork, got {found!r}")
    return found


def build(name: str, input_shape: Sequence[int], classes: int, arguments: Mapping[str, Any]) -> ImplicitNetwork:
    """Build an architecture by name, with fresh weights.

    Args:
        name: as ``find`` takes it.
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
    try:
        architecture = find(name)
    except ValueError as error:
        raise ValueError(f"architecture.name: {error}") from error
    try:
        inspect.signature(architecture).bind(tuple(input_shape), classes, **arguments)
    except TypeError as error:
        raise ValueError(f"architecture.arguments: {name}: {error}") from error
    expected = get_type_hints(architecture.__init__)
    for argument, value in arguments.items():
        try:
            TypeAdapter(expected.get(argument, Any)).validate_python(value)
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
    "find",
]
