"""Iteration-level batching against lockstep batching: the same engine, network, images and tolerances.

In lockstep a batch ends when its slowest row has converged at the strictest tolerance, as in servers for networks of fixed
depth. Each closed-loop client keeps one image in the engine; half of the requests have the tolerance 1e-1 and half 1e-4. Both
modes run in one process, one after the other. The table has medians over the rounds, and medians of the ratios within a round.

    python -m training import authors mnist_fpn.safetensors --family mnist
    python -m benchmarks.engine model_store/authors_mnist/1 --data ylecun/mnist
"""

import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import structlog
import torch
import typer
from rich.console import Console
from rich.table import Table

import jfb
from app.engine.loading import make_batch
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine_client.messages import Request
from app.settings import BackendName, EngineConfig, Precision
from benchmarks.lockstep import LockstepScheduler
from training.data import read
from training.recipe import DataRecipe

LOOSE, STRICT = 1e-1, 1e-4
MODES: dict[str, type[Scheduler]] = {"lockstep": LockstepScheduler, "iteration": Scheduler}


@dataclass
class Run:
    """One mode in one round."""

    requests_per_second: float
    latencies: dict[float, list[float]]
    """Milliseconds, by tolerance."""
    evaluations: float
    """Of ``step`` for one row, per request."""

    def percentile(self, tolerance: float, share: float) -> float:
        return float(np.percentile(self.latencies[tolerance], 100 * share))


@dataclass(frozen=True)
class ComputeOptions:
    """What the engine computes with: settings of ``python -m app``, and the solver."""

    backend: BackendName = "auto"
    precision: Precision = "float32"
    solver: str | None = None
    """The model's own if None."""


def make_scheduler(folder: Path, mode: str, slots: int | None, clients: int, options: ComputeOptions) -> Scheduler:
    """Return a scheduler like the server's, whose queue has room for one row per client."""
    checkpoint = jfb.load(folder)
    if options.solver is not None:
        serving = checkpoint.config.serving.model_copy(update={"solver": options.solver})
        checkpoint = jfb.Checkpoint(checkpoint.config.model_copy(update={"serving": serving}), checkpoint.network)
    cpu = torch.device("cpu")
    precision = "float32" if mode == "lockstep" else options.precision
    batch = make_batch(checkpoint, folder, cpu, EngineConfig(slots=slots, backend=options.backend, precision=precision))
    return MODES[mode](batch, max_waiting_rows=clients)


def drive(scheduler: Scheduler, images: np.ndarray, clients: int) -> Run:
    """Run every image once, with ``clients`` of them in flight at any time."""
    tolerances = np.random.default_rng(0).permutation(np.resize([LOOSE, STRICT], len(images))).tolist()
    sent: dict[int, float] = {}
    latencies: dict[float, list[float]] = {LOOSE: [], STRICT: []}

    def send() -> None:
        number = len(sent)
        if number < len(images):
            sent[number] = time.perf_counter()
            request = Request("model", 1, images[number].tobytes(), [tolerances[number]], [1000], [None])
            scheduler.submit(RunningRequest(number, request, images.shape[1:]))

    evaluations, start = scheduler.step_evaluations, time.perf_counter()
    for _ in range(clients):
        send()
    while scheduler.busy:
        for request in scheduler.tick(time.perf_counter()):
            latencies[tolerances[request.number]].append(1000 * (time.perf_counter() - sent[request.number]))
            send()
    seconds = time.perf_counter() - start
    return Run(len(images) / seconds, latencies, (scheduler.step_evaluations - evaluations) / len(images))


def main(
    model: Annotated[Path, typer.Argument(help="A version's folder.")],
    data: Annotated[str, typer.Option(help="Source of the images: a hub id, a folder, or sklearn/digits.")],
    split: str = "test",
    images: Annotated[int, typer.Option(help="Number of images per round and mode.")] = 1000,
    slots: int = 32,
    clients: int = 64,
    rounds: int = 5,
    threads: int = 1,
    backend: BackendName = "auto",
    precision: Precision = "float32",
    solver: str | None = None,
) -> None:
    """Print the figures of both modes, and their ratios."""
    torch.set_num_threads(threads)
    console = Console()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    options = ComputeOptions(backend, precision, solver)
    source = read(DataRecipe(source=data), [split], console).splits[split]
    inputs = source.inputs[:images].float().numpy()
    modes = list(MODES)
    for mode in modes:
        drive(make_scheduler(model, mode, slots, clients, options), inputs[: 2 * slots], clients)  # warm up
    runs: dict[str, list[Run]] = {mode: [] for mode in modes}
    for number in range(rounds):
        for mode in modes if number % 2 else reversed(modes):
            runs[mode].append(drive(make_scheduler(model, mode, slots, clients, options), inputs, clients))

    table = Table("", *modes, "ratio", title=f"{model}: {len(inputs)} images, {slots} slots, {clients} clients, {rounds} rounds")
    figures = {
        "requests/s": lambda run: run.requests_per_second,
        "step evaluations per request": lambda run: run.evaluations,
        "loose (1e-1) p50, ms": lambda run: run.percentile(LOOSE, 0.5),
        "loose (1e-1) p99, ms": lambda run: run.percentile(LOOSE, 0.99),
        "strict (1e-4) p50, ms": lambda run: run.percentile(STRICT, 0.5),
        "strict (1e-4) p99, ms": lambda run: run.percentile(STRICT, 0.99),
    }
    for name, figure in figures.items():
        medians = [statistics.median(figure(run) for run in runs[mode]) for mode in modes]
        ratio = statistics.median(figure(b) / figure(a) for a, b in zip(*runs.values(), strict=True))
        table.add_row(name, *(f"{value:.1f}" for value in medians), f"{ratio:.2f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
