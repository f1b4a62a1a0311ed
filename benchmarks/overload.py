"""Overload: what a server still does when it is asked for up to three times what it can do.

First closed-loop clients find the sustainable load. Then requests are sent at fixed multiples of it, whether or not earlier
ones were answered (open loop). Each takes the same number of iterations, so the engine is what is short. It is aimed at: at
three times the sustainable load the goodput (answers 200 a second) is within 10 % of the best, and the slowest admitted request
has waited no longer than the queue is long: waiting rows over rows a second.

    python -m benchmarks.overload --seconds 10
"""

import asyncio
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.soak import ENDLESS, SETTINGS, running
from jfb import checkpoint
from jfb.architectures import build
from jfb.architectures.implicit_mlp import ImplicitMLP

ROWS, ITERATIONS = 4, 1500
BODY = {"inputs": [[0, 1, 2, 3]] * ROWS, "tolerance": 1e-30, "max_iterations": ITERATIONS}
QUEUE = SETTINGS["max_waiting_rows"]
LOADS = (0.5, 1.0, 2.0, 3.0)


@dataclass
class Load:
    """What came of one load."""

    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Seconds, of the admitted ones."""
    retry_after: list[int] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        return len(self.latencies) / self.seconds

    async def ask(self, client: httpx.AsyncClient) -> None:
        began = time.perf_counter()
        answer = await client.post("/models/slow/predict", json=BODY)
        self.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            self.latencies.append(time.perf_counter() - began)
        elif answer.status_code == 429:
            self.retry_after.append(int(answer.headers["retry-after"]))


async def closed(client: httpx.AsyncClient, seconds: float) -> Load:
    """As many clients as keep the slots full."""
    load = Load(seconds)
    until = time.monotonic() + seconds

    async def one() -> None:
        while time.monotonic() < until:
            await load.ask(client)

    await asyncio.gather(*(one() for _ in range(8)))
    return load


async def opened(client: httpx.AsyncClient, seconds: float, rate: float) -> Load:
    """So many requests a second."""
    load = Load(seconds)
    asked = []
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        while len(asked) < passed * rate:
            asked.append(asyncio.create_task(load.ask(client)))
        await asyncio.sleep(0.002)
    await asyncio.gather(*asked)
    load.seconds = time.monotonic() - began  # the queue was served to its end
    return load


async def measure(seconds: float, folder: Path) -> list[tuple[str, Load, float]]:
    """Run all loads against one server, each between two measurements of the sustainable one, for machines are not steady."""
    network = build("implicit_mlp", (4,), 2, ENDLESS.architecture.arguments)
    assert isinstance(network, ImplicitMLP)
    nn.init.orthogonal_(network.latent.weight)
    with checkpoint.new_version(folder / "store", "slow") as version:
        checkpoint.save(version, ENDLESS, network)
    loads: list[tuple[str, Load, float]] = []
    async with (
        running(folder / "store", folder / "log", 0) as soak,
        httpx.AsyncClient(base_url=soak.url, timeout=120, limits=httpx.Limits(max_connections=2000)) as client,
    ):
        await closed(client, 2)  # to warm up
        before = await closed(client, seconds / 2)
        for multiple in LOADS:
            load = await opened(client, seconds, multiple * before.goodput)
            after = await closed(client, seconds / 2)
            loads.append((f"{multiple:g} x", load, (before.goodput + after.goodput) / 2))
            before = after
    return loads


def main(seconds: Annotated[float, typer.Option(min=2, help="How long each load lasts.")] = 10) -> None:
    """Measure goodput and latency below and above the sustainable load."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="jfb-overload-") as folder:
        loads = asyncio.run(measure(seconds, Path(folder)))
    table = Table(
        "load", "goodput /s", "sustainable /s", "ratio", "p50 ms", "p99 ms", "most ms", "queue ms", "200", "429", "Retry-After s"
    )
    for name, load, sustainable in loads:
        p50, p99, most = np.percentile(load.latencies, [50, 99, 100]) * 1e3
        full_queue = (int(QUEUE) + int(SETTINGS["slots"])) / ROWS / load.goodput * 1e3  # rows ahead over rows a second
        waits = f"{min(load.retry_after)} to {max(load.retry_after)}" if load.retry_after else ""
        table.add_row(
            *(name, f"{load.goodput:.1f}", f"{sustainable:.1f}", f"{load.goodput / sustainable:.0%}"),
            *(f"{p50:.0f}", f"{p99:.0f}", f"{most:.0f}"),
            *(f"{full_queue:.0f}", str(load.statuses[200]), str(load.statuses[429]), waits),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
