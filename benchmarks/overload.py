"""Overload: goodput and latency of a server at up to three times its sustainable load.

Closed-loop clients, enough to keep the slots full, measure the sustainable load. Then requests are sent at a multiple of that
rate, whether or not earlier ones have been answered (open loop). All requests take the same number of iterations, so the engine
is the bottleneck. Targets at three times the sustainable load: the goodput (200 responses per second) is within 10 % of the
sustainable load, and admitted requests wait for at most twice the queue time, which is the rows in the queue over the rows that
leave per second. It is twice that because the last rows of a request wait in an order that gets half of the slots
(``app.engine.queue``).

The server's processes share one core, and the clients have another. With ``--apart`` the HTTP worker shares the clients' core,
so that the engine has its own, as on most machines. Machines are not steady, so each load is compared with the closed loop
before and after it, and the tables have medians over the rounds. Other programs on the server's core lower the goodput, but not
the responses per second of the server's own CPU time, which are listed too; those are meaningful while the server is always
busy, from the sustainable load on.

    python -m benchmarks.overload --rounds 5
    python -m benchmarks.overload --rounds 5 --apart
"""

import asyncio
import json
import os
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
import uvloop
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.processes import children, pin, processor_seconds
from benchmarks.serving.load import Connection
from benchmarks.soak import ENDLESS, SETTINGS, Soak, running
from jfb import checkpoint
from jfb.architectures import build
from jfb.architectures.implicit_mlp import ImplicitMLP
from jfb.store import new_version

ROWS, ITERATIONS = 4, 400
BODY = json.dumps({"inputs": [[0, 1, 2, 3]] * ROWS, "tolerance": 1e-30, "max_iterations": ITERATIONS})
REQUEST = (
    "POST /models/slow/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    f"content-length: {len(BODY)}\r\n\r\n{BODY}"
).encode()
CLIENTS = 8
FULL = (int(str(SETTINGS["max_waiting_rows"])) + int(str(SETTINGS["slots"]))) / ROWS
"""Requests in a full server."""
LOADS = (0.5, 1.0, 2.0, 3.0)
RAMP_SECONDS, MEASURED_SECONDS = 1.0, 6.0
"""Durations of one measurement; responses in the ramp do not count."""
NAMES = ("http", "engine", "load")
"""Of the processes whose CPU time is measured."""


class Client(Connection):
    """A connection that also reads ``Retry-After``."""

    retry_after = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.retry_after = int(value)


@dataclass
class Load:
    """One load and its result."""

    server: Soak
    closed: bool
    """Whether each client sends its next request when it has a response."""
    goodput: float = 0.0
    """200 responses per second, after the ramp."""
    cpu: dict[str, float] = field(default_factory=dict)
    """CPU seconds per second of the HTTP worker, the engine and the clients in that time."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Responses by status; 0 counts lost connections."""
    latencies: list[float] = field(default_factory=list)
    """Milliseconds, of admitted requests."""
    rejections: list[float] = field(default_factory=list)
    """Milliseconds, of rejected requests."""
    retry_after: list[int] = field(default_factory=list)
    _in_flight: dict[Connection, float] = field(default_factory=dict)
    _idle: list[Client] = field(default_factory=list)
    _connections: list[Client] = field(default_factory=list)

    async def send(self) -> None:
        """Send a request over an idle connection, or a new one."""
        if self._idle:
            client = self._idle.pop()
        else:
            url = httpx.URL(self.server.url)
            connect = asyncio.get_running_loop().create_connection
            _, client = await connect(lambda: Client(self._on_response, self._on_lost), url.host, url.port)
            self._connections.append(client)
        self._send(client)

    async def measure(self) -> None:
        """Measure goodput and CPU time after the ramp."""
        await asyncio.sleep(RAMP_SECONDS)
        answered, cpu, start = len(self.latencies), self._cpu(), time.perf_counter()
        await asyncio.sleep(MEASURED_SECONDS)
        seconds = time.perf_counter() - start
        self.goodput = (len(self.latencies) - answered) / seconds
        self.cpu = {name: (after - cpu[name]) / seconds for name, after in self._cpu().items()}
        self.closed = False

    async def end(self) -> None:
        """Wait for the last responses, and close the connections."""
        while self._in_flight:
            await asyncio.sleep(0.01)
        for client in self._connections:
            client.close()

    @property
    def per_cpu_second(self) -> float:
        """200 responses per second of the server's CPU time."""
        return self.goodput / (self.cpu["http"] + self.cpu["engine"])

    def _send(self, client: Client) -> None:
        self._in_flight[client] = time.perf_counter()
        client.send(REQUEST)

    def _on_response(self, client: Connection, status: int, body: bytes) -> None:
        assert isinstance(client, Client)
        milliseconds = (time.perf_counter() - self._in_flight.pop(client)) * 1e3
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(milliseconds)
        elif status == 429:
            self.rejections.append(milliseconds)
            self.retry_after.append(client.retry_after)
        if self.closed:
            self._send(client)
        else:
            self._idle.append(client)

    def _on_lost(self) -> None:
        self.statuses[0] += 1
        self._in_flight = {client: since for client, since in self._in_flight.items() if client.busy}

    def _cpu(self) -> dict[str, float]:
        (worker,) = children(self.server.process.pid, "app.cli.http_worker")
        processes = {"http": worker, "engine": self.server.engine(), "load": os.getpid()}
        return {name: processor_seconds(pid) for name, pid in processes.items()}


async def sustained(server: Soak) -> Load:
    """Run closed-loop clients, enough to keep the server busy."""
    load = Load(server, closed=True)
    for _ in range(CLIENTS):
        await load.send()
    await load.measure()
    await load.end()
    return load


async def offered(server: Soak, rate: float) -> Load:
    """Send ``rate`` requests per second."""
    load = Load(server, closed=False)
    measuring = asyncio.create_task(load.measure())
    sent: list[asyncio.Task[None]] = []
    start = time.monotonic()
    while not measuring.done():
        while len(sent) < (time.monotonic() - start) * rate:
            sent.append(asyncio.create_task(load.send()))
        await asyncio.sleep(0.002)
    await asyncio.gather(measuring, *sent)
    await load.end()
    return load


async def measure(rounds: int, folder: Path, apart: bool) -> AsyncIterator[tuple[float, tuple[Load, Load], Load]]:
    """Yield for each round and load: the multiple, the sustained loads before and after it, and its result."""
    network = build("implicit_mlp", (4,), 2, ENDLESS.architecture.arguments)
    assert isinstance(network, ImplicitMLP)
    nn.init.orthogonal_(network.latent.weight)
    with new_version(folder / "store", "slow") as version:
        checkpoint.save(version, ENDLESS, network)
    server_core, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {server_core})  # the server inherits this
    async with running(folder / "store", folder / "log", 0) as server:
        clients = {*others[:1]} or {server_core}
        os.sched_setaffinity(0, clients)
        if apart:
            for worker in children(server.process.pid, "app.cli.http_worker"):
                pin(worker, clients)
        await sustained(server)  # warm-up
        before = await sustained(server)
        for _ in range(rounds):
            for multiple in LOADS:
                load = await offered(server, multiple * before.goodput)
                after = await sustained(server)
                yield multiple, (before, after), load
                before = after


def show(found: list[tuple[float, tuple[Load, Load], Load]], console: Console) -> None:
    """Print medians over the rounds."""
    median = statistics.median
    speed = Table(
        "load", "goodput /s", "of the sustained", "per CPU second", "200", "429", "lost", *(f"CPU {name}" for name in NAMES)
    )
    waits = Table("load", "p50 ms", "p99 ms", "p99 / queue", "429: p99 ms", "Retry-After s")
    for multiple in LOADS:
        those = [(around, load) for one, around, load in found if one == multiple]
        loads = [load for _, load in those]
        goodput = median(load.goodput for load in loads)
        kept = median(load.goodput / statistics.mean(one.goodput for one in around) for around, load in those)
        kept_by_cpu = median(
            load.per_cpu_second / statistics.mean(one.per_cpu_second for one in around) for around, load in those
        )
        counts = (str(sum(load.statuses[status] for load in loads)) for status in (200, 429, 0))
        cpu = (f"{median(load.cpu[name] for load in loads):.0%}" for name in NAMES)
        speed.add_row(f"{multiple:g} x", f"{goodput:.1f}", f"{kept:.0%}", f"{kept_by_cpu:.0%}", *counts, *cpu)
        p50, p99 = (median(np.percentile(load.latencies, share) for load in loads) for share in (50, 99))
        queue = median(np.percentile(load.latencies, 99) / (FULL / load.goodput * 1e3) for load in loads)
        rejections = [milliseconds for load in loads for milliseconds in load.rejections]
        retry_after = [seconds for load in loads for seconds in load.retry_after]
        waits.add_row(
            *(f"{multiple:g} x", f"{p50:.0f}", f"{p99:.0f}", f"{queue:.2f}"),
            *((f"{np.percentile(rejections, 99):.0f}", f"{min(retry_after)} to {max(retry_after)}") if retry_after else ("", "")),
        )
    around = [one for _, pair, _ in found for one in pair]
    rates, costs = [one.goodput for one in around], [f"{median(one.cpu[name] for one in around):.0%}" for name in NAMES]
    console.print(f"sustained: {min(rates):.1f} to {max(rates):.1f} requests/s; CPU of {', '.join(NAMES)}: {', '.join(costs)}")
    console.print(speed, waits)


async def run(rounds: int, folder: Path, apart: bool, console: Console) -> None:
    """Measure and print."""
    show([one async for one in measure(rounds, folder, apart)], console)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each load is measured.")] = 5,
    apart: Annotated[bool, typer.Option(help="Give the engine its own core; the HTTP worker shares the clients' core.")] = False,
) -> None:
    """Measure goodput and latency below and above the sustainable load."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="jfb-overload-") as folder:
        uvloop.run(run(rounds, Path(folder), apart, Console(width=120)))


if __name__ == "__main__":
    typer.run(main)
