"""Architectures: the implicit networks that a config can name, one file each, and those that installed packages register."""

import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from jfb.architectures.authors_resnet import AuthorsResNet
from jfb.architectures.implicit_mlp import ImplicitMLP
from jfb.architectures.implicit_resnet import ImplicitResNet
from jfb.architectures.max_propagation import MaxPropagation
from jfb.architectures.monotone_conv import MonotoneConv
from jfb.architectures.monotone_mlp import MonotoneMLP
from jfb.config import must_be_one_of
from jfb.network import ImplicitNetwork

ARCHITECTURES: dict[str, type[ImplicitNetwork]] = {
    "authors_resnet": AuthorsResNet,
    "implicit_mlp": ImplicitMLP,
    "implicit_resnet": ImplicitResNet,
    "max_propagation": MaxPropagation,
    "monotone_conv": MonotoneConv,
    "monotone_mlp": MonotoneMLP,
}

NOT_SERVED = ("neural_ode", "augmented_neural_ode")
"""Architectures that exist only for comparison (``training.rivals``)."""

RESERVED = (*ARCHITECTURES, *NOT_SERVED, "onnx")
"""Names that no other class can have; ``onnx`` is a folder of graphs (``jfb.onnx``)."""

GROUP = "jfb.architectures"
"""The entry point group in which an installed package registers its own architectures: a name and a class each."""

_registered: dict[str, type[ImplicitNetwork]] = {}
"""The architectures of this process (``register``)."""


def register(name: str, network: type[ImplicitNetwork]) -> None:
    """Register your own class in this process, so that ``save`` and ``load`` know it under a name.

    A notebook may register a class again after it was changed. For the server, a package registers it with an entry point
    (``GROUP``), because the server is another process.

    Args:
        name: of the architecture, for ``config.json``.
        network: its constructor takes ``input_shape`` and ``classes``, then typed keyword arguments.

    Raises:
        ValueError: for an empty name, and for one of the built-in architectures.
        TypeError: for what is not a subclass of ``ImplicitNetwork`` with its three methods.
    """
    if not name or name in RESERVED:
        raise ValueError(f"name: must not be empty or one of {', '.join(RESERVED)} (got {name!r})")
    if not (isinstance(network, type) and issubclass(network, ImplicitNetwork)):
        raise TypeError(f"network: must be a subclass of jfb.ImplicitNetwork (got {network!r})")
    if missing := sorted(network.__abstractmethods__):
        raise TypeError(f"network: must define {', '.join(missing)} (got {network.__name__}, which does not)")
    _registered[name] = network


def find(name: str) -> type[ImplicitNetwork]:
    """Find the class of an architecture: one of ``ARCHITECTURES``, or one that this process or an installed package registers.

    A config can name an architecture but not import one, so only installed code runs.

    Raises:
        ValueError: for an unknown name, and for a registered name that does not lead to an implicit network.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if name in _registered:
        return _registered[name]
    registered = entry_points(group=GROUP)
    if name not in registered.names:
        known = sorted({*ARCHITECTURES, *_registered, *registered.names})
        raise ValueError(must_be_one_of(known, name))
    entry = registered[name]
    try:
        found = entry.load()
    except Exception as error:  # importing a module may raise anything
        raise ValueError(f"{name!r} is registered as {entry.value}, which cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, ImplicitNetwork)):
        raise ValueError(
            f"{name!r} is registered as {entry.value}, which must be a subclass of jfb.ImplicitNetwork (got {found!r})"
        )
    return found


def build(name: str, input_shape: Sequence[int], classes: int, arguments: Mapping[str, Any]) -> ImplicitNetwork:
    """Build an architecture by name, with fresh weights.

    Args:
        name: see ``find``.
        input_shape: shape of one raw input.
        classes: number of classes, at least 1.
        arguments: keyword arguments of the architecture.

    Raises:
        ValueError: for an unknown name, an unknown or missing argument, or one that the architecture rejects.
    """
    if name in NOT_SERVED:
        raise ValueError(
            f"architecture.name: {name!r} is not served: it follows a differential equation and has no fixed point to iterate "
            "to; it exists for comparison (python -m training compare --rivals)"
        )
    try:
        architecture = find(name)
    except ValueError as error:
        raise ValueError(f"architecture.name: {error}") from error
    try:
        check_arguments(architecture, arguments)
        inspect.signature(architecture).bind(tuple(input_shape), classes, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"architecture.arguments{'.' if isinstance(error, ValueError) else f': {name}: '}{error}") from error
    return architecture(tuple(input_shape), classes, **arguments)  # type: ignore[call-arg]  # bound above


def check_arguments(architecture: type[ImplicitNetwork], arguments: Mapping[str, Any]) -> None:
    """Check the names and the types of an architecture's keyword arguments.

    Raises:
        ValueError: for an unknown argument, with the known ones, or a value of another type; the message starts with its name.
    """
    parameters = list(inspect.signature(architecture).parameters.values())[2:]  # after input_shape and classes
    known = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    any_name = any(one.kind is one.VAR_KEYWORD for one in parameters)
    expected = get_type_hints(architecture.__init__)
    for argument, value in arguments.items():
        if argument not in known and not any_name:
            raise ValueError(f"{argument}: unknown argument: {must_be_one_of(known, argument)}")
        try:
            TypeAdapter(expected.get(argument, Any)).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].replace("Input should be", "must be")
            message = "must be a list" if "Sequence" in message else message  # Python's word, where users write YAML
            raise ValueError(f"{argument}: {message} (got {value!r})") from error


__all__ = [
    "ARCHITECTURES",
    "NOT_SERVED",
    "AuthorsResNet",
    "ImplicitMLP",
    "ImplicitResNet",
    "MaxPropagation",
    "MonotoneConv",
    "MonotoneMLP",
    "build",
    "find",
    "register",
]
