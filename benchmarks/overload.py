"""Overload: what a server still does when it is asked for up to three times what it can do.

Closed-loop clients, as many as keep the slots full, show the sustainable load. Then requests are sent at a multiple of it,
whether or not earlier ones were answered (open loop). All take the same number of iterations, so the engine is what is short.
It is aimed at: at three times the sustainable load the goodput (answers 200 a second) is within 10 % of the sustainable, and
what is admitted waits no longer than the queue is long: the rows in it over the rows that leave a second.

Machines are not steady, so each load is compared with the closed loop before and after it, and medians over rounds are told.

    python -m benchmarks.overload --rounds 5
"""

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
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

ROWS, ITERATIONS = 4, 400
BODY = {"inputs": [[0, 1, 2, 3]] * ROWS, "tolerance": 1e-30, "max_iterations": ITERATIONS}
CLIENTS = 8
FULL = (int(str(SETTINGS["max_waiting_rows"])) + int(str(SETTINGS["slots"]))) / ROWS
"""Requests in a full server."""
LOADS = (0.5, 1.0, 2.0, 3.0)
LIMITS = httpx.Limits(max_connections=2000, keepalive_expiry=2.0)
"""The server closes connections that were idle for 5 s; one that is used again at that very moment would break."""
RAMP, SECONDS = 1.0, 6.0
"""Of one measurement; what is answered in the ramp is not counted."""


@dataclass
class Load:
    """What came of one load."""

    goodput: float = 0.0
    """Answers 200 a second, after the ramp."""
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Milliseconds, of the admitted ones."""
    retry_after: list[int] = field(default_factory=list)

    async def ask(self, client: httpx.AsyncClient) -> None:
        """One request."""
        began = time.perf_counter()
        answer = await client.post("/models/slow/predict", json=BODY)
        self.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            self.latencies.append((time.perf_counter() - began) * 1e3)
        elif answer.status_code == 429:
            self.retry_after.append(int(answer.headers["retry-after"]))

    async def count(self) -> None:
        """See how many are answered once the ramp is over."""
        await asyncio.sleep(RAMP)
        before = len(self.latencies)
        await asyncio.sleep(SECONDS)
        self.goodput = (len(self.latencies) - before) / SECONDS


async def closed(client: httpx.AsyncClient) -> float:
    """The sustainable requests a second."""
    load = Load()
    counting = asyncio.create_task(load.count())

    async def one() -> None:
        while not counting.done():
            await load.ask(client)

    await asyncio.gather(counting, *(one() for _ in range(CLIENTS)))
    return load.goodput


async def opened(client: httpx.AsyncClient, rate: float) -> Load:
    """So many requests a second."""
    load = Load()
    counting = asyncio.create_task(load.count())
    asked: list[asyncio.Task[None]] = []
    began = time.monotonic()
    while not counting.done():
        while len(asked) < (time.monotonic() - began) * rate:
            asked.append(asyncio.create_task(load.ask(client)))
        await asyncio.sleep(0.002)
    await asyncio.gather(*asked)
    return load


async def measure(rounds: int, folder: Path) -> AsyncIterator[tuple[float, float, Load]]:
    """Each load in each round: the multiple, the sustainable requests a second around it, and what came of it."""
    network = build("implicit_mlp", (4,), 2, ENDLESS.architecture.arguments)
    assert isinstance(network, ImplicitMLP)
    nn.init.orthogonal_(network.latent.weight)
    with checkpoint.new_version(folder / "store", "slow") as version:
        checkpoint.save(version, ENDLESS, network)
    async with (
        running(folder / "store", folder / "log", 0) as soak,
        httpx.AsyncClient(base_url=soak.url, timeout=120, limits=LIMITS) as client,
    ):
        await closed(client)  # to warm up
        before = await closed(client)
        for _ in range(rounds):
            for multiple in LOADS:
                load = await opened(client, multiple * before)
                after = await closed(client)
                yield multiple, (before + after) / 2, load
                before = after


async def run(rounds: int, folder: Path, console: Console) -> None:
    """Measure and print."""
    found = [one async for one in measure(rounds, folder)]
    table = Table("load", "goodput /s", "of the sustainable", "p50 ms", "p99 ms", "p99 / queue", "200", "429", "Retry-After s")
    for multiple in LOADS:
        loads = [(sustainable, load) for one, sustainable, load in found if one == multiple]
        goodput = statistics.median(load.goodput for _, load in loads)
        ratio = statistics.median(load.goodput / sustainable for sustainable, load in loads)
        p50, p99 = (statistics.median(np.percentile(load.latencies, share) for _, load in loads) for share in (50, 99))
        queue = statistics.median(np.percentile(load.latencies, 99) / (FULL / load.goodput * 1e3) for _, load in loads)
        waits = [wait for _, load in loads for wait in load.retry_after]
        table.add_row(
            *(f"{multiple:g} x", f"{goodput:.1f}", f"{ratio:.0%}", f"{p50:.0f}", f"{p99:.0f}", f"{queue:.2f}"),
            *(str(sum(load.statuses[status] for _, load in loads)) for status in (200, 429)),
            f"{min(waits)} to {max(waits)}" if waits else "",
        )
    console.print(table)


def main(rounds: Annotated[int, typer.Option(min=1, help="How often each load is measured.")] = 5) -> None:
    """Measure goodput and latency below and above the sustainable load."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="jfb-overload-") as folder:
        asyncio.run(run(rounds, Path(folder), Console(width=120)))


if __name__ == "__main__":
    typer.run(main)
