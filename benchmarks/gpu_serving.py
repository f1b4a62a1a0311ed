"""What a server carries: requests a second at 1, 16 and 64 connections, and what holds it back.

Starts ``python -m app`` on a store of one model. Each connection asks for one input at a time, half of the requests at 1e-1 and
half at 1e-4. The last column says what holds it back: the share of the time that each part is busy, the busiest first. Parts are
the HTTP process, the engine process and this client (a core each, by processor time), and the GPU (by nvidia-smi, if there).

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

from benchmarks.processes import processor_seconds
from jfb.store import list_models, read_config

LOOSE, STRICT = 1e-1, 1e-4
CONNECTIONS = (1, 16, 64)


@dataclass
class Load:
    """What came of one number of connections."""

    latencies: dict[float, list[float]] = field(default_factory=lambda: {LOOSE: [], STRICT: []})
    """Milliseconds, by tolerance."""
    iterations: int = 0
    seconds: float = 0.0
    """From the first request to the last answer."""
    busy: dict[str, float] = field(default_factory=dict)
    """Share of the time, by part."""

    async def ask(self, client: httpx.AsyncClient, model: str, inputs: np.ndarray, until: float, number: int) -> None:
        """One connection."""
        while time.perf_counter() < until:
            number += 1
            tolerance = (LOOSE, STRICT)[number % 2]
            body = {"inputs": [inputs[number % len(inputs)].tolist()], "tolerance": tolerance, "max_iterations": 1000}
            began = time.perf_counter()
            answer = await client.post(f"/models/{model}/predict", json=body)
            answer.raise_for_status()
            self.latencies[tolerance].append((time.perf_counter() - began) * 1e3)
            self.iterations += answer.json()["predictions"][0]["iterations"]


def child(process: int) -> int:
    """The engine's process (Linux)."""
    (first, *_) = [
        int(number) for path in Path(f"/proc/{process}/task").glob("*/children") for number in path.read_text().split()
    ]
    return first


def gpu_share() -> float | None:
    """How busy the GPU was in the last moments, 0 to 1."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return int(answer[0]) / 100 if answer and answer[0].isdecimal() else None


@contextmanager
def server(store: Path, log: Path) -> Iterator[tuple[str, int]]:
    """A server that is ready: its address and its process."""
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
    """Ask for so many seconds."""
    parts = {"HTTP process": process, "engine process": child(process), "client": os.getpid()}
    load = Load()
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=connections)) as client:
        await Load().ask(client, model, inputs, time.perf_counter() + 1, 0)
        before = {name: processor_seconds(number) for name, number in parts.items()}
        began = time.perf_counter()
        until = began + seconds
        asking = [asyncio.create_task(load.ask(client, model, inputs, until, number)) for number in range(connections)]
        await asyncio.sleep(0.7 * seconds)
        gpu = await asyncio.to_thread(gpu_share)
        await asyncio.gather(*asking)
        load.seconds = time.perf_counter() - began
    load.busy = {name: (processor_seconds(number) - before[name]) / load.seconds for name, number in parts.items()}
    if gpu is not None:
        load.busy["GPU"] = gpu
    return load


def main(
    store: Annotated[Path, typer.Argument(help="A model store; its first model is asked.")] = Path("model_store"),
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each measurement.")] = 5.0,
) -> None:
    """Serve a model, ask it, and print a table."""
    model, versions = next(iter(list_models(store).items()))
    config = read_config(store / model / str(versions[-1]))
    high = config.input.high or 1.0
    inputs = np.random.default_rng(0).random((64, *config.input.shape)).astype(np.float32).round(3) * high
    table = Table(
        *("connections", "requests/s", "loose p50 ms", "loose p99", "strict p50 ms", "strict p99", "iterations", "busiest"),
        title=f"{model}, one input a request",
    )
    with tempfile.TemporaryDirectory() as folder, server(store, Path(folder) / "log") as (url, process):
        for connections in CONNECTIONS:
            load = asyncio.run(measure(url, process, model, inputs, connections, seconds))
            answers = sum(map(len, load.latencies.values()))
            percentiles = [f"{np.percentile(load.latencies[t], p):.1f}" for t in (LOOSE, STRICT) for p in (50, 99)]
            shares = ", ".join(f"{part} {share:.0%}" for part, share in sorted(load.busy.items(), key=lambda item: -item[1]))
            table.add_row(
                str(connections), f"{answers / load.seconds:.0f}", *percentiles, f"{load.iterations / answers:.1f}", shares
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
