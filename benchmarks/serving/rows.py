"""Who takes part: the rows of the table."""

from dataclasses import dataclass, field
from typing import Any

APP = (
    *("{python}", "-m", "app", "--model-store", "{store}", "--port", "{port}"),
    *("--device", "cpu", "--threads", "1", "--drain-seconds", "0"),
)
RIVAL = ("{rivals_python}", "-m", "benchmarks.serving.rivals.{module}", "{version}", "{port}")


@dataclass(frozen=True)
class Row:
    """A server, and how it is asked."""

    name: str
    command: tuple[str, ...]
    """With ``{python}``, ``{rivals_python}``, ``{store}``, ``{version}`` (a folder) and ``{port}`` to be filled in."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What every request has beside ``inputs`` and ``tolerance``."""
    main: bool = False
    """Whether it is asked by 1 and 16 clients too; the others by 64, and by the first of the Poisson processes."""
    wrapped_in: str | None = None
    """Name of the list that a request has to stand in."""
    needs: str | None = None
    """The package without which it is left out."""


def app(name: str, *flags: str, main: bool = False, **fields: Any) -> Row:
    """This project's server, with some flags, and requests with some more fields."""
    return Row(name, APP + flags, fields, main)


def rival(name: str, module: str, needs: str, *, main: bool = False, wrapped_in: str | None = None) -> Row:
    """Another server: a module in ``rivals``."""
    command = tuple(part.replace("{module}", module) for part in RIVAL)
    return Row(name, command, main=main, wrapped_in=wrapped_in, needs=needs)


OURS, FASTAPI, ONNX, LITSERVE = "jfb", "FastAPI", "FastAPI, ONNX Runtime", "LitServe"
"""The rows that the targets are about."""

ROWS = (
    app(OURS, main=True),
    app("jfb, Picard", main=True, solver="picard"),
    app("jfb, mixed precision", "--precision", "mixed"),
    app("jfb, PyTorch eager, Picard", "--backend", "torch", solver="picard"),
    app("jfb, ONNX Runtime, Picard", "--backend", "onnx", solver="picard"),
    app("jfb, lockstep, Picard", "--batching", "lockstep", solver="picard"),
    app("jfb, label stop", main=True, stop="label", solver="picard"),
    rival(FASTAPI, "fastapi_torch", "fastapi", main=True),
    rival(ONNX, "fastapi_onnxruntime", "orjson", main=True),
    rival(LITSERVE, "litserve_batches", "litserve", main=True),
    rival("LitServe, continuous", "litserve_continuous", "litserve"),
    rival("BentoML", "bentoml_batches", "bentoml", wrapped_in="questions"),
    rival("Ray Serve", "ray_batches", "ray"),
)
