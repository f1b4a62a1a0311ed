"""The engine process; ``app.engine_client.supervisor`` starts it.

It ends when its standard input closes, so however the process at the other end ends, no engine is left behind.
"""

import gc
import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import torch
import typer

from app.engine.backends import BackendName, Precision
from app.engine.lane import Batching
from app.engine.loading import Loader
from app.engine.process import EngineProcess
from app.engine.served_models import Lifecycle
from app.observability import logging as log


def main(
    address: Annotated[str, typer.Option(help="ZeroMQ address to bind, such as ipc:///run/jfb/engine.")],
    store: Annotated[Path, typer.Option(help="Model store to serve, all of it.")],
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, ...; several with commas.")] = "auto",
    slots: Annotated[int | None, typer.Option(min=1, help="Rows iterated at a time, a version and device.")] = None,
    max_waiting_rows: Annotated[int, typer.Option(min=1, help="Rows that may wait for a slot, a version.")] = 4096,
    batching: Annotated[Batching, typer.Option(help="When the batch is reshaped.")] = "iteration",
    backend: Annotated[BackendName, typer.Option(help="What computes; auto is the fastest by measurement.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Whether rows begin in bfloat16.")] = "auto",
    session_bytes: Annotated[int, typer.Option(min=0, help="Memory for the last fixed points of sessions, a version.")] = 2**26,
    session_seconds: Annotated[float, typer.Option(min=0, help="How long a session that is not used is remembered.")] = 300.0,
    unloaded: Annotated[list[str] | None, typer.Option(help="A model not to serve until it is loaded; may be repeated.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of PyTorch.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_format: Annotated[str, typer.Option(help="auto, console or json.")] = "auto",
) -> None:
    """Load a model store and serve it on a ZeroMQ socket until SIGTERM, or until the standard input closes."""
    log.configure(log_level, log_format)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default rounds convolutions to ten bits, and calls that float32
    loader = Loader(
        store,
        tuple(_usable(name.strip()) for name in device.split(",")),
        slots,
        max_waiting_rows,
        batching,
        session_bytes,
        session_seconds,
        backend,
        precision,
    )
    lifecycle = Lifecycle(loader, unloaded or [])
    lifecycle.apply(lifecycle.find_changes(None))
    while any(not (store / version).exists() for version in lifecycle.refused):  # removed in the meantime: what replaced it?
        lifecycle.apply(lifecycle.find_changes(None))
    gc.collect()
    gc.freeze()  # what the libraries hold would be looked through in every full collection, for a tenth of a second
    EngineProcess(address, lifecycle).serve()


def _usable(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch that was built without it
        raise typer.BadParameter(f"device: expected one that PyTorch can use here, got {device!r}: {error}") from error


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)  # from here it is certain to end, whatever the main thread does


typer.run(main)
