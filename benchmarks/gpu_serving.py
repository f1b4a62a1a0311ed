"""Throughput and latency of a server on a device by number of connections, against LitServe, and the bottleneck.

Each connection sends one input at a time, half of the requests with the tolerance 1e-1 and half with 1e-4; each response is
checked. The last column shows how busy the parts are, the busiest, which is the bottleneck, first: the busiest process of each
kind and this client by CPU time, where 100 % is one core, and the GPU by nvidia-smi if it is installed. LitServe computes batches
that iterate until their slowest row has converged, on the same device; it is left out if it is not installed.

    python -m benchmarks.gpu_serving                              # the cifar10 recipe's network, untrained
    python -m benchmarks.gpu_serving model_store/authors_mnist/1
"""

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import jfb
from benchmarks.gpu_batching import random_images, show, write
from benchmarks.processes import processor_seconds
from benchmarks.serving.load import Outcome, closed_loop
from benchmarks.serving.requests import LOOSE, STRICT, Request, encode, make_requests
from benchmarks.serving.rows import Row
from benchmarks.serving.server import ServerFailed, adopt_orphans, descendants, free_port, running
from benchmarks.untrained import ModelOrUntrained, model_or_untrained
from training.device import choose_device

IMAGES = 64
RAMP_SECONDS = 1.0
MAX_LOG_CHARACTERS = 3000
KINDS = {"app.cli.http_worker": "HTTP worker", "app.engine": "engine"}
"""By module; all other processes are called server."""


def rows(device: torch.device) -> list[Row]:
    """Return the servers to compare; each comes with several HTTP processes and with one."""
    app = ("{python}", "-m", "app", "--model-store", "{store}", "--default-model", "{name}", "--port", "{port}")
    app += ("--device", str(device), "--drain-seconds", "0", "--log-level", "warning")
    litserve = ("{python}", "-m", "benchmarks.serving.rivals.litserve_batches", "{version}", "{port}", device.type)
    several = str(max(2, (os.cpu_count() or 2) // 4))
    cap = {"max_iterations": 1000}
    found = [
        Row(f"jfb, {several} HTTP workers", (*app, "--http-workers", several), cap),
        Row(f"LitServe, {several} API servers", (*litserve, several), cap, needs="litserve"),
        Row("jfb", app, cap),
        Row("LitServe", (*litserve, "1"), cap, needs="litserve"),
    ]
    return [row for row in found if row.needs is None or importlib.util.find_spec(row.needs)]


def gpu_share() -> float | None:
    """Return how busy the GPU is, in [0, 1]; None without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    output = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return int(output[0]) / 100 if output and output[0].isdecimal() else None


async def measure(
    port: int, requests: list[Request], encoded: list[bytes], connections: int, seconds: float
) -> tuple[Outcome, dict[str, float]]:
    """Run the connections, and return the outcome and how busy each part was."""
    parts = {process: _kind(process) for process in descendants()} | {os.getpid(): "client"}
    before = {process: processor_seconds(process) for process in parts}
    start = time.perf_counter()
    load = asyncio.create_task(closed_loop(port, requests, encoded, connections, RAMP_SECONDS, seconds))
    await asyncio.sleep(RAMP_SECONDS + 0.7 * seconds)
    gpu = await asyncio.to_thread(gpu_share)
    outcome = await load
    passed = time.perf_counter() - start
    busy: dict[str, float] = defaultdict(float)
    for process, kind in parts.items():
        busy[kind] = max(busy[kind], (processor_seconds(process) - before[process]) / passed)
    return outcome, {**busy} | ({} if gpu is None else {"GPU": gpu})


def _kind(process: int) -> str:
    command = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    return next((kind for module, kind in KINDS.items() if module in command), "server")


def describe(server: str, connections: int, outcome: Outcome, busy: dict[str, float]) -> dict[str, object]:
    """Return a row of the table."""
    shares = sorted(busy.items(), key=lambda part: -part[1])
    return {
        "server": server,
        "connections": connections,
        "requests/s": outcome.answered / outcome.seconds,
        "loose p50 ms": outcome.percentile(LOOSE, 0.5),
        "loose p99": outcome.percentile(LOOSE, 0.99),
        "strict p50": outcome.percentile(STRICT, 0.5),
        "strict p99": outcome.percentile(STRICT, 0.99),
        "iterations": sum(outcome.iterations) / max(outcome.answered, 1),
        "wrong": outcome.wrong,
        "failed": outcome.failed,
        "busiest first": ", ".join(f"{part} {share:.0%}" for part, share in shares if share >= 0.01),
    }


def first_lines(log: Path) -> str:
    """Return what a server has logged first, such as why it does not use CUDA graphs."""
    return log.read_text(errors="replace")[:MAX_LOG_CHARACTERS].strip() or "nothing logged"


def main(
    model: ModelOrUntrained = None,
    connections: Annotated[str, typer.Option(help="Separated by commas.")] = "1,64,512",
    seconds: Annotated[float, typer.Option(min=0.5, help="Duration of each measurement.")] = 3.0,
    servers: Annotated[int, typer.Option(min=1, help="How many of the servers, in order.")] = 4,
    device: Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
    out: Annotated[Path | None, typer.Option(help="CSV file to write the table to.")] = None,
) -> None:
    """Serve a model, send requests to it, and print a table."""
    adopt_orphans()
    on = choose_device(device)
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        version = model_or_untrained(model, Path(temporary) / "store").resolve()
        checkpoint = jfb.load(version)
        requests = make_requests(checkpoint, torch.from_numpy(random_images(checkpoint, IMAGES)))
        for row in rows(on)[:servers]:
            encoded = [encode(request, row) for request in requests]
            port = free_port()
            places = {"python": sys.executable, "store": version.parents[1], "name": version.parent.name, "version": version}
            command = [part.format(port=port, **places) for part in row.command]
            cores, log = os.sched_getaffinity(0), Path(temporary) / "server.log"
            try:
                with running(command, port, cores, encoded[0], log):
                    for number in map(int, connections.split(",")):
                        outcome, busy = asyncio.run(measure(port, requests, encoded, number, seconds))
                        found.append(describe(row.name, number, outcome, busy))
                        write(out, found)
            except ServerFailed as error:
                Console().print(f"left out: {row.name}: {error}", markup=False)
            else:
                Console().print(f"{row.name}: {first_lines(log)}", markup=False, soft_wrap=True)
    if not found:
        sys.exit(1)
    show(f"{model or 'cifar10, untrained'}, one input per request", found)


if __name__ == "__main__":
    typer.run(main)
