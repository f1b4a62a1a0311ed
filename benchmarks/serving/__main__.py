"""Serve the authors' MNIST network with this server and with others, under the same load, and print one table.

Linux with at least two cores, of which the first has every process of the server under test, and the second the clients. The
others are installed into an environment of their own, so that they cannot disturb this one:

    python -m venv rivals && rivals/bin/pip install torch==2.13.0
    rivals/bin/pip install -r benchmarks/serving/constraints.txt

    python -m training import authors mnist_fpn.safetensors --family mnist
    python -m training evaluate authors_mnist --recipe mnist --data ylecun/mnist --apply
    python -m benchmarks.serving model_store/authors_mnist/1 --data ylecun/mnist --rivals-python rivals/bin/python

In each round each server is started in turn, the order being reversed in every second one. It is asked by 64 closed-loop clients,
then (the main rows) by 16 and by 1, and by a Poisson process. Half of the requests, in random order, want 1e-1 and half 1e-4.
What is told are medians over the rounds, and of ratios within a round.

Those that do not install or do not start are left out, with a message. ``--check-load`` asks a server that computes nothing, to
see that the clients are not what is measured.
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
from benchmarks.serving.questions import Question, ask_about, request
from benchmarks.serving.report import FIGURES, Results
from benchmarks.serving.rows import ROWS, Row
from jfb.export import export
from training.data import read
from training.recipe import DataRecipe

RAMP = 1.5
"""Seconds of each load that are not counted."""
WARM_UP = 2.0
"""Seconds of 64 clients, of a server that has just started."""
IDLE = Row("computes nothing", ("{python}", "-m", "benchmarks.serving.idle", "{port}"))

console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Load:
    """So many clients, or so many requests a second."""

    name: str
    clients: int = 0
    rate: float = 0

    async def drive(self, port: int, questions: list[Question], requests: list[bytes], seconds: float) -> load.Outcome:
        if self.clients:
            return await load.closed(port, questions, requests, self.clients, RAMP, seconds)
        return await load.poisson(port, questions, requests, self.rate, RAMP, seconds)


@dataclass(frozen=True)
class Bench:
    """What all rows are measured with."""

    questions: list[Question]
    placeholders: dict[str, str]
    folder: Path
    server_core: int
    seconds: float

    def measure(self, row: Row, loads: list[Load]) -> Iterator[tuple[Load, load.Outcome, float]]:
        """Start a row's server and ask it: each load, what came of it, and MiB of memory.

        Raises:
            ServerFailed: if it does not start.
        """
        requests = [request(question, row) for question in self.questions]
        port = server.free_port()
        command = [part.format_map(self.placeholders | {"port": str(port)}) for part in row.command]
        log = self.folder / f"{row.name.replace(' ', '_').replace(',', '')}.log"
        with server.running(command, port, self.server_core, requests[0], log) as running:
            uvloop.run(load.closed(port, self.questions, requests, 64, 0.0, WARM_UP))
            for one in loads:
                running.pin()
                outcome = uvloop.run(one.drive(port, self.questions, requests, self.seconds))
                yield one, outcome, running.memory()


def main(
    version: Annotated[Path, typer.Argument(help="Folder of the version of the authors' MNIST network.")],
    data: Annotated[str, typer.Option(help="MNIST: a hub id, or a folder.")],
    rivals_python: Annotated[Path | None, typer.Option(help="Of the others' environment; they are left out without it.")] = None,
    rounds: int = 3,
    seconds: Annotated[float, typer.Option(help="How long each load is measured.")] = 6.0,
    rows: Annotated[str, typer.Option(help="Names with ; between them; all if left out.")] = "",
    loads: Annotated[str, typer.Option(help="Of 64, 16 and 1 (clients), and open.")] = "64,16,1,open",
    rates: Annotated[str, typer.Option(help="Of the Poisson processes; all but the first for the main rows only.")] = "100,300",
    images: Annotated[int, typer.Option(help="Different ones; each is asked about twice.")] = 500,
    offline_rounds: Annotated[int, typer.Option(help="Of the solvers without HTTP; 0 leaves them out.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Markdown file, written anew after each round.")] = None,
    check_load: Annotated[bool, typer.Option(help="Only ask a server that computes nothing.")] = False,
) -> None:
    """Print and write the table."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise typer.BadParameter("expected at least two cores, one for the server and one for the clients")
    server_core, load_core = cores[:2]
    os.sched_setaffinity(0, {load_core})
    server.adopt_orphans()
    checkpoint = jfb.load(version)
    chosen = read(DataRecipe(source=data), ["test"], console).splits["test"].inputs[:images]
    questions = ask_about(checkpoint, chosen)

    with tempfile.TemporaryDirectory(prefix="jfb-serving-") as temporary:
        folder = Path(temporary)
        placeholders = _prepare(folder, version, rivals_python)
        np.save(folder / "images.npy", chosen.float().numpy())
        bench = Bench(questions, placeholders, folder, server_core, seconds)
        if check_load:
            for one, outcome, _ in bench.measure(IDLE, _loads("64,16,1", "")):
                console.print(f"{one.name}: {_summary(outcome)}")
            return
        results = Results()
        taking_part = _taking_part(rows, rivals_python, results)
        title = _title(version, rounds, seconds, len(chosen))
        for number in range(rounds):
            for row in taking_part[:: -1 if number % 2 else 1]:
                _measure(bench, row, _loads(loads, rates, main=row.main), number, results)
            if output:
                output.write_text(results.markdown(title))
        for number in range(offline_rounds):
            _measure_offline(folder, placeholders, server_core, number, results)
    text = results.markdown(title)
    console.print(text, markup=False, highlight=False)
    if output:
        output.write_text(text)


def _prepare(folder: Path, version: Path, rivals_python: Path | None) -> dict[str, str]:
    """A store with the version, and in it the ONNX graphs of its maps, which this server chooses where they are faster."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    copy = folder / "store" / "authors_mnist" / "1"
    shutil.copytree(version, copy)
    export(copy, parts=True)
    return {"python": sys.executable, "rivals_python": str(rivals_python), "store": str(folder / "store"), "version": str(copy)}


def _taking_part(names: str, rivals_python: Path | None, results: Results) -> list[Row]:
    wanted = [name.strip() for name in names.split(";") if name.strip()] or [row.name for row in ROWS]
    if unknown := set(wanted) - {row.name for row in ROWS}:
        raise typer.BadParameter(f"rows: expected some of {'; '.join(row.name for row in ROWS)}, got {', '.join(unknown)}")
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
        return "there is no --rivals-python"
    tried = subprocess.run([rivals_python, "-c", f"import {row.needs}"], capture_output=True, text=True)
    return tried.stderr or "it cannot be imported" if tried.returncode else ""


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
    console.print(f"round {number + 1}  {row.name}: {time.monotonic() - began:.0f} s in all")


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
        f"{version}: {images} images, half of the requests at 1e-1 and half at 1e-4; {rounds} rounds, {seconds:g} s a load; "
        f"{time.strftime('%Y-%m-%d')}. Medians over the rounds; targets are medians of the ratios within a round. "
        "MiB are those resident in all processes of a server."
    )


if __name__ == "__main__":
    typer.run(main)
