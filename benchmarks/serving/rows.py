"""The servers that are compared: the rows of the table."""

from dataclasses import dataclass, field
from typing import Any

APP = (
    *("{python}", "-m", "app", "--model-store", "{store}", "--port", "{port}"),
    *("--device", "cpu", "--threads", "1", "--drain-seconds", "0"),
)
RIVAL = ("{rivals_python}", "-m", "benchmarks.serving.rivals.{module}", "{version}", "{port}")


@dataclass(frozen=True)
class Row:
    """A server, and the requests that it gets."""

    name: str
    command: tuple[str, ...]
    """With ``{python}``, ``{rivals_python}``, ``{store}``, ``{version}`` (a folder) and ``{port}`` as placeholders."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of each request in addition to ``inputs`` and ``tolerance``."""
    main: bool = False
    """Whether it gets all loads; other rows get 64 clients and the first Poisson process."""
    wrapped_in: str | None = None
    """Field that holds a list of requests, for servers that expect one."""
    needs: str | None = None
    """Package that must be importable; otherwise the row is left out."""
    both_cores: bool = False
    """Whether it is measured while servers and clients share both cores, and not otherwise."""


def app(name: str, *flags: str, main: bool = False, both_cores: bool = False, **fields: Any) -> Row:
    """This project's server with these flags and fields."""
    return Row(name, APP + flags, fields, main, both_cores=both_cores)


def rival(
    name: str,
    module: str,
    needs: str,
    *flags: str,
    main: bool = False,
    both_cores: bool = False,
    wrapped_in: str | None = None,
) -> Row:
    """Another server: a module of ``rivals``."""
    command = tuple(part.replace("{module}", module) for part in RIVAL) + flags
    return Row(name, command, main=main, wrapped_in=wrapped_in, needs=needs, both_cores=both_cores)


OURS, LABEL, FASTAPI, ONNX, LITSERVE = "jfb", "jfb, label stop", "FastAPI", "FastAPI, ONNX Runtime", "LitServe"
OURS_ON_BOTH, ONNX_ON_BOTH = "jfb, both cores", "FastAPI, ONNX Runtime, 2 workers"
"""The rows that the targets compare."""

ROWS = (
    app(OURS, main=True),
    app("jfb, Picard", main=True, solver="picard"),
    app("jfb, mixed precision", "--precision", "mixed"),
    app("jfb, PyTorch eager, Picard", "--backend", "torch", solver="picard"),
    app("jfb, ONNX Runtime, Picard", "--backend", "onnx", solver="picard"),
    app("jfb, Anderson", main=True, solver="anderson"),
    app(LABEL, main=True, stop="label"),
    rival(FASTAPI, "fastapi_torch", "fastapi", main=True),
    rival(ONNX, "fastapi_onnxruntime", "orjson", main=True),
    rival(LITSERVE, "litserve_batches", "litserve", main=True),
    rival("LitServe, continuous", "litserve_continuous", "litserve"),
    rival("BentoML", "bentoml_batches", "bentoml", wrapped_in="requests"),
    rival("Ray Serve", "ray_batches", "ray"),
    app(OURS_ON_BOTH, both_cores=True, main=True),
    app("jfb, both cores, 2 engines", "--engines", "2", both_cores=True, main=True),
    app("jfb, both cores, 2 engines, 2 workers", "--engines", "2", "--http-workers", "2", both_cores=True, main=True),
    rival(ONNX_ON_BOTH, "fastapi_onnxruntime", "orjson", "2", both_cores=True, main=True),
)
