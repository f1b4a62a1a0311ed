"""Flags: every setting as a flag of the command line."""

import sys
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from app.settings import Settings

DESCRIPTION = (
    "Serve the implicit networks of a model store over HTTP. Every flag is also an environment variable: --port is JFB_PORT. "
    "The other commands, each with its own --help: python -m app predict sends images to a server, python -m app alias names a "
    "version."
)


def read_settings(program: str, arguments: Sequence[str]) -> Settings:
    """Settings of the flags, and of the environment where there is no flag.

    An unknown flag ends the process with status 2 and the nearest known one; a wrong value raises pydantic's ``ValidationError``.
    """
    parser = ArgumentParser(prog=program, usage="%(prog)s [OPTIONS]", description=DESCRIPTION, allow_abbrev=False)
    fields = {_flag(name): (name, field) for name, field in Settings.model_fields.items()}
    for flag, (name, field) in fields.items():
        text = f"{field.description}{_default(name, field)}".replace("%", "%%")
        parser.add_argument(flag, default=SUPPRESS, metavar=_metavar(field), help=text)
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].split("=")[0]
        near = "".join(f"; did you mean {name}?" for name in get_close_matches(flag, fields, n=1))
        sys.stderr.write(f"flag: must be one that {program} --help lists (got {flag}{near})\n")
        sys.exit(2)
    return Settings(**vars(given))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(name: str, field: FieldInfo) -> str:
    """The default as people write it; nothing where the description says what happens without a value."""
    if field.default in (None, ""):
        return ""
    if isinstance(field.default, bool):
        return f" (default: {str(field.default).lower()})"
    text = f"{field.default:.12g}" if isinstance(field.default, int | float) else str(field.default)
    return f" (default: {text}{f', {field.default >> 20} MiB' if name.endswith('_bytes') else ''})"


def _metavar(field: FieldInfo) -> str:
    arguments = get_args(field.annotation)
    if get_origin(field.annotation) is Literal:
        return f"{{{','.join(arguments)}}}"
    kind: object = arguments[0] if arguments else field.annotation
    names: dict[object, str] = {bool: "<bool>", int: "<int>", float: "<float>", Path: "<path>"}
    return names.get(kind, "<str>")
