"""Serve the authors' MNIST network with this server and with others, under the same load, and print one table.

Needs Linux with at least two cores: the first runs every process of the server under test, and the second runs the clients. The
other servers are installed into their own environment, so that they cannot disturb this one:

    python -m venv rivals && rivals/bin/pip install torch==2.13.0
    rivals/bin/pip install -r benchmarks/serving/constraints.txt

    python -m training import authors mnist_fpn.safetensors --family mnist
    python -m training evaluate authors_mnist --recipe mnist --data ylecun/mnist --apply
    python -m benchmarks.serving model_store/authors_mnist/1 --data ylecun/mnist --rivals-python rivals/bin/python

Each round starts the servers one after the other, every second round in the reverse order. Each server gets requests from 64
closed-loop clients, the main ones also from 16 and from 1, and then from a Poisson process. Half of the requests set the
tolerance 1e-1 and half 1e-4, in random order. This server takes the version's solver, which is learned mixing once ``python -m
training accelerate`` has made it so; the endpoint with ONNX Runtime iterates plainly. The table has medians over the rounds;
targets are medians of the ratios within a round.

With ``--both-cores`` servers and clients share both cores, as on a machine that does nothing else.

Servers that are not installed or do not start are left out, with a message. ``--check-load`` measures a server that computes
nothing, to verify that the clients are not the bottleneck.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvloop
from rich.console import Console

import jfb
from benchmarks.serving import load, offline, server
from benchmarks.serving.report import FIGURES, Results
from benchmarks.serving.requests import Request, encode, make_requests
from benchmarks.serving.rows import ROWS, Row
from jfb.export import export
from training.data import read
from training.data.sources import DIGITS
from training.recipe import DataRecipe

RAMP_SECONDS = 1.5
"""At the start of each load; not counted."""
WARM_UP_SECONDS = 2.0
"""With 64 clients, after a server has started."""
IDLE = Row("computes nothing", ("{python}", "-m", "benchmarks.serving.idle", "{port}"))

console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Load:
    """A number of closed-loop clients, or a rate of requests per second."""

    name: str
    clients: int = 0
    rate: float = 0

    async def drive(self, port: int, requests: list[Request], encoded: list[bytes], seconds: float) -> load.Outcome:
        if self.clients:
            return await load.closed_loop(port, requests, encoded, self.clients, RAMP_SECONDS, seconds)
        return await load.poisson(port, requests, encoded, self.rate, RAMP_SECONDS, seconds)


@dataclass(frozen=True)
class Bench:
    """What all rows are measured with."""

    requests: list[Request]
    placeholders: dict[str, str]
    folder: Path
    server_cores: set[int]
    seconds: float

    def measure(self, row: Row, loads: list[Load]) -> Iterator[tuple[Load, load.Outcome, float]]:
        """Start a row's server and apply each load: yield the load, its outcome, and the server's memory in MiB.

        Raises:
            ServerFailed: if the server does not start.
        """
        encoded = [encode(request, row) for request in self.requests]
        port = server.free_port()
        command = [part.format_map(self.placeholders | {"port": str(port)}) for part in row.command]
        log = self.folder / f"{row.name.replace(' ', '_').replace(',', '')}.log"
        with server.running(command, port, self.server_cores, encoded[0], log) as running:
            uvloop.run(load.closed_loop(port, self.requests, encoded, 64, 0.0, WARM_UP_SECONDS))
            for one in loads:
                running.pin()
                outcome = uvloop.run(one.drive(port, self.requests, encoded, self.seconds))
                yield one, outcome, running.memory()


def main(
    version: Annotated[Path, typer.Argument(help="Folder of the version of the authors' MNIST network.")],
    data: Annotated[str, typer.Option(help="MNIST: a hub id, or a folder.")],
    rivals_python: Annotated[Path | None, typer.Option(help="Python of the other servers; without it they are left out.")] = None,
    rounds: int = 3,
    seconds: Annotated[float, typer.Option(help="How long each load is measured.")] = 6.0,
    rows: Annotated[str, typer.Option(help="Names of rows, separated by semicolons; all by default.")] = "",
    loads: Annotated[str, typer.Option(help="Numbers of clients, and open: the Poisson processes.")] = "64,16,1,open",
    rates: Annotated[
        str,
        typer.Option(help="Requests per second; all except the first for main rows only."),
    ] = "100,300",
    images: Annotated[int, typer.Option(help="Number of images; each is sent twice.")] = 500,
    offline_rounds: Annotated[int, typer.Option(help="Rounds of the solvers without HTTP; 0 leaves them out.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Markdown file, rewritten after each round.")] = None,
    both_cores: Annotated[
        bool, typer.Option(help="Let the server and the clients share both cores; only the rows for that.")
    ] = False,
    check_load: Annotated[bool, typer.Option(help="Measure only a server that computes nothing.")] = False,
) -> None:
    """Print and write the table."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise typer.BadParameter(f"needs at least two cores, one for the server and one for the clients (got {len(cores)})")
    server_core, load_core = cores[:2]
    server_cores = {server_core, load_core} if both_cores else {server_core}
    os.sched_setaffinity(0, server_cores if both_cores else {load_core})
    server.adopt_orphans()
    checkpoint = jfb.load(version)
    split = "train" if data == DIGITS else "test"  # digits has one split
    chosen = read(DataRecipe(source=data), [split], console).splits[split].inputs[:images]
    requests = make_requests(checkpoint, chosen)

    with tempfile.TemporaryDirectory(prefix="jfb-serving-") as temporary:
        folder = Path(temporary)
        placeholders = _prepare(folder, version, rivals_python)
        np.save(folder / "images.npy", chosen.float().numpy())
        bench = Bench(requests, placeholders, folder, server_cores, seconds)
        if check_load:
            for one, outcome, _ in bench.measure(IDLE, _loads("64,16,1", "")):
                console.print(f"{one.name}: {_summary(outcome)}")
            return
        results = Results()
        selected = _select_rows(rows, rivals_python, results, both_cores=both_cores)
        title = _title(version, rounds, seconds, len(chosen))
        for number in range(rounds):
            for row in selected[:: -1 if number % 2 else 1]:
                _measure(bench, row, _loads(loads, rates, main=row.main), number, results)
            if output:
                output.write_text(results.markdown(title))
        for number in range(0 if both_cores else offline_rounds):
            _measure_offline(folder, placeholders, server_core, number, results)
    text = results.markdown(title)
    console.print(text, markup=False, highlight=False)
    if output:
        output.write_text(text)


def _prepare(folder: Path, version: Path, rivals_python: Path | None) -> dict[str, str]:
    """Make a store of the version and its exported ONNX graphs; return the placeholders of the rows' commands."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    copy = folder / "store" / "authors_mnist" / "1"
    shutil.copytree(version, copy)
    export(copy, parts=True)
    return {"python": sys.executable, "rivals_python": str(rivals_python), "store": str(folder / "store"), "version": str(copy)}


def _select_rows(names: str, rivals_python: Path | None, results: Results, *, both_cores: bool) -> list[Row]:
    wanted = [name.strip() for name in names.split(";") if name.strip()] or [
        row.name for row in ROWS if row.both_cores == both_cores
    ]
    if unknown := set(wanted) - {row.name for row in ROWS}:
        raise typer.BadParameter(
            f"--rows: must be some of {'; '.join(row.name for row in ROWS)} (got {'; '.join(sorted(unknown))})"
        )
    found = []
    for row in ROWS:
        if row.name not in wanted:
            continue
        if reason := _missing(row, rivals_python):
            results.skipped[row.name] = reason
            console.print(f"left out: {row.name}: {reason.strip().splitlines()[-1]}")
        else:
            found.append(row)
    return found


def _missing(row: Row, rivals_python: Path | None) -> str:
    if row.needs is None:
        return ""
    if rivals_python is None:
        return "--rivals-python is not set"
    tried = subprocess.run([rivals_python, "-c", f"import {row.needs}"], capture_output=True, text=True)
    return tried.stderr or "cannot be imported" if tried.returncode else ""


def _loads(names: str, rates: str, *, main: bool = True) -> list[Load]:
    found = []
    for name in names.split(","):
        if name == "open":
            several = [float(rate) for rate in rates.split(",")]
            found += [Load(f"{rate:g}/s, Poisson", rate=rate) for rate in (several if main else several[:1])]
        elif main or name == "64":
            found.append(Load("1 client" if name == "1" else f"{name} clients", clients=int(name)))
    return found


def _measure(bench: Bench, row: Row, loads: list[Load], number: int, results: Results) -> None:
    if row.name in results.skipped:
        return
    began = time.monotonic()
    memory = 0.0
    try:
        for one, outcome, memory in bench.measure(row, loads):
            results.add(one.name, row.name, number, outcome)
            console.print(f"round {number + 1}  {row.name:24} {one.name:16} {_summary(outcome)}  {memory:.0f} MiB")
            if outcome.failed or outcome.wrong:
                console.print(f"    {outcome.failed} failed, {outcome.wrong} wrong: {outcome.failure}", markup=False)
        results.memory.setdefault(row.name, []).append(memory)
    except server.ServerFailed as error:
        results.skipped[row.name] = str(error)
        console.print(f"left out: {row.name}: {error}", markup=False)
    console.print(f"round {number + 1}  {row.name}: {time.monotonic() - began:.0f} s in total")


def _measure_offline(folder: Path, placeholders: dict[str, str], core: int, number: int, results: Results) -> None:
    contenders = list(offline.CONTENDERS)
    for name in contenders[:: -1 if number % 2 else 1]:
        python = placeholders["python" if name == offline.OURS else "rivals_python"]
        if python == "None":
            continue
        found = subprocess.run(
            [python, "-m", "benchmarks.serving.offline", name, placeholders["version"], str(folder / "images.npy")],
            env={**os.environ, **server.ONE_THREAD, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        if found.returncode:
            results.skipped[name] = found.stderr
            console.print(f"left out: {name}: {found.stderr.strip().splitlines()[-1]}", markup=False)
        else:
            results.offline.setdefault(name, []).append(float(found.stdout.split()[-1]))
            console.print(f"round {number + 1}  {name}: {results.offline[name][-1]:.0f} samples/s")


def _summary(outcome: load.Outcome) -> str:
    return "  ".join(f"{name} {figure(outcome):.1f}" for name, figure in FIGURES.items())


def _title(version: Path, rounds: int, seconds: float, images: int) -> str:
    return (
        f"{version}: {images} images, half of the requests at 1e-1 and half at 1e-4; {rounds} rounds, {seconds:g} s per load; "
        f"{time.strftime('%Y-%m-%d')}. Medians over the rounds; targets are medians of the ratios within a round. "
        "MiB are the resident memory of all processes of a server."
    )


if __name__ == "__main__":
    typer.run(main)
