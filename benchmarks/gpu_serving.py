"""Throughput and latency of a server at 1, 16 and 64 connections, and its bottleneck.

Starts ``python -m app`` on a model store, and sends requests to its first model. Each connection sends one input at a time,
half of the requests with the tolerance 1e-1 and half with 1e-4. The last column shows how busy each part is, the busiest first:
the HTTP worker, the engine and this client by CPU time, where 100 % is one core, and the GPU by nvidia-smi if it is installed.

    python -m benchmarks.gpu_serving model_store
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.processes import children, processor_seconds
from jfb.store import list_models, read_config

LOOSE, STRICT = 1e-1, 1e-4
CONNECTIONS = (1, 16, 64)


@dataclass
class Load:
    """The result with one number of connections."""

    latencies: dict[float, list[float]] = field(default_factory=lambda: {LOOSE: [], STRICT: []})
    """Milliseconds, by tolerance."""
    iterations: int = 0
    seconds: float = 0.0
    """From the first request to the last response."""
    busy: dict[str, float] = field(default_factory=dict)
    """Share of the time, by part."""

    async def run_connection(self, client: httpx.AsyncClient, model: str, inputs: np.ndarray, until: float, number: int) -> None:
        """Send requests over one connection, one after the other."""
        while time.perf_counter() < until:
            number += 1
            tolerance = (LOOSE, STRICT)[number % 2]
            body = {"inputs": [inputs[number % len(inputs)].tolist()], "tolerance": tolerance, "max_iterations": 1000}
            start = time.perf_counter()
            response = await client.post(f"/models/{model}/predict", json=body)
            response.raise_for_status()
            self.latencies[tolerance].append((time.perf_counter() - start) * 1e3)
            self.iterations += response.json()["predictions"][0]["iterations"]


def gpu_share() -> float | None:
    """Return how busy the GPU is, in [0, 1]; None without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    output = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return int(output[0]) / 100 if output and output[0].isdecimal() else None


@contextmanager
def server(store: Path, log: Path) -> Iterator[tuple[str, int]]:
    """Start a server; yield its URL and process id once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app", "--model-store", str(store), "--port", str(port), "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not become ready:\n{log.read_text()}")
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(30)


async def measure(url: str, process: int, model: str, inputs: np.ndarray, connections: int, seconds: float) -> Load:
    """Run the connections for ``seconds`` after a warm-up."""
    parts = {
        "HTTP worker": children(process, "app.cli.http_worker")[0],
        "engine": children(process, "app.engine")[0],
        "client": os.getpid(),
    }
    load = Load()
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=connections)) as client:
        await Load().run_connection(client, model, inputs, time.perf_counter() + 1, 0)
        before = {name: processor_seconds(number) for name, number in parts.items()}
        start = time.perf_counter()
        until = start + seconds
        tasks = [asyncio.create_task(load.run_connection(client, model, inputs, until, number)) for number in range(connections)]
        await asyncio.sleep(0.7 * seconds)
        gpu = await asyncio.to_thread(gpu_share)
        await asyncio.gather(*tasks)
        load.seconds = time.perf_counter() - start
    load.busy = {name: (processor_seconds(number) - before[name]) / load.seconds for name, number in parts.items()}
    if gpu is not None:
        load.busy["GPU"] = gpu
    return load


def main(
    store: Annotated[Path, typer.Argument(help="A model store; its first model gets the requests.")] = Path("model_store"),
    seconds: Annotated[float, typer.Option(min=0.5, help="Duration of each measurement.")] = 5.0,
) -> None:
    """Serve a model, send requests to it, and print a table."""
    model, versions = next(iter(list_models(store).items()))
    config = read_config(store / model / str(versions[-1]))
    high = config.input.high or 1.0
    inputs = np.random.default_rng(0).random((64, *config.input.shape)).astype(np.float32).round(3) * high
    table = Table(
        *("connections", "requests/s", "loose p50 ms", "loose p99", "strict p50 ms", "strict p99", "iterations", "busiest"),
        title=f"{model}, one input per request",
    )
    with tempfile.TemporaryDirectory() as folder, server(store, Path(folder) / "log") as (url, process):
        for connections in CONNECTIONS:
            load = asyncio.run(measure(url, process, model, inputs, connections, seconds))
            responses = sum(map(len, load.latencies.values()))
            percentiles = [f"{np.percentile(load.latencies[t], p):.1f}" for t in (LOOSE, STRICT) for p in (50, 99)]
            shares = ", ".join(f"{part} {share:.0%}" for part, share in sorted(load.busy.items(), key=lambda item: -item[1]))
            table.add_row(
                str(connections), f"{responses / load.seconds:.0f}", *percentiles, f"{load.iterations / responses:.1f}", shares
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
