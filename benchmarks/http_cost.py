"""Cost of a request outside the iterations: CPU time per request of the HTTP worker and of the engine.

64 clients send one MNIST-sized image per request, as JSON, for one iteration, so that HTTP dominates. CPU time depends less
than throughput on other work of the machine. To compare two trees, give ``--tree`` twice: their servers alternate. With
``--clients 1`` the median latency is that of a request on an otherwise idle server.

    python -m benchmarks.http_cost model_store/authors_mnist/1 --tree . --tree ../before
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvloop

from benchmarks.processes import processor_seconds
from benchmarks.serving import load, server
from benchmarks.serving.requests import Request, encode
from benchmarks.serving.rows import Row

TOLERANCE = 0.1


def main(
    version: Annotated[Path, typer.Argument(help="Folder of the version of the authors' MNIST network.")],
    tree: Annotated[list[Path] | None, typer.Option(help="Folder of the server's code; may be repeated.")] = None,
    rounds: int = 3,
    seconds: float = 4.0,
    max_iterations: int = 1,
    clients: Annotated[int, typer.Option(help="Number of closed-loop clients.")] = 64,
    flag: Annotated[list[str] | None, typer.Option(help="Additional flag of the server; may be repeated.")] = None,
) -> None:
    """Print CPU time per request and the median latency, as medians over the rounds."""
    trees = [one.resolve() for one in tree or [Path.cwd()]]
    server_core, load_core = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {load_core})
    server.adopt_orphans()
    images = np.random.default_rng(0).integers(0, 256, (200, 1, 28, 28)).tolist()
    row = Row("", (), {"max_iterations": max_iterations})
    any_label = frozenset(map(str, range(10)))
    requests = [Request(image, TOLERANCE, any_label) for image in images]
    encoded = [encode(request, row) for request in requests]
    found: dict[Path, list[tuple[float, float, float, float]]] = {one: [] for one in trees}
    with tempfile.TemporaryDirectory(prefix="jfb-http-") as temporary:
        store = Path(temporary) / "store" / "authors_mnist"
        store.mkdir(parents=True)
        (store / "1").symlink_to(version.resolve())
        for number in range(rounds):
            for one in trees[:: -1 if number % 2 else 1]:
                port = server.free_port()
                flags = [
                    "--model-store",
                    str(store.parent),
                    "--port",
                    str(port),
                    "--device",
                    "cpu",
                    "--threads",
                    "1",
                    *(flag or []),
                ]
                command = [sys.executable, "-m", "app", *flags]
                with server.running(command, port, {server_core}, encoded[0], Path(temporary) / "log", tree=one):
                    uvloop.run(load.closed_loop(port, requests, encoded, clients, 0.0, 1.0))
                    before = _cpu()
                    outcome = uvloop.run(load.closed_loop(port, requests, encoded, clients, 0.0, seconds))
                    http, engine = (1e6 * (b - a) / outcome.answered for a, b in zip(before, _cpu(), strict=True))
                found[one].append((outcome.answered / seconds, outcome.percentile(TOLERANCE, 0.5), http, engine))
                print(f"round {number + 1}  {one}: {_shown(*found[one][-1])}")
    for one, values in found.items():
        medians = [statistics.median(column) for column in zip(*values, strict=True)]
        print(f"{one}: {_shown(*medians)}")


def _shown(rate: float, latency: float, http: float, engine: float) -> str:
    return f"{rate:.0f} requests/s, p50 {latency:.2f} ms, {http:.0f} µs in the HTTP worker, {engine:.0f} µs in the engine"


def _cpu() -> tuple[float, float]:
    """Return the CPU seconds so far of the HTTP worker, supervisor included, and of the engine."""
    seconds = [0.0, 0.0]
    for process in server.descendants():
        is_engine = b"app.engine" in Path(f"/proc/{process}/cmdline").read_bytes()
        seconds[is_engine] += processor_seconds(process)
    return seconds[0], seconds[1]


if __name__ == "__main__":
    typer.run(main)
