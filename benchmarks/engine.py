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
from collections import defaultdict
from collections.abc import Callable, Sequence
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
    latencies: dict[object, list[float]]
    """Milliseconds, by kind of image."""
    evaluations: float
    """Of ``step`` for one row, per request, without what was computed for free slots and for rows that had ended."""

    def percentile(self, kind: object, share: float) -> float:
        return float(np.percentile(self.latencies[kind], 100 * share))


@dataclass(frozen=True)
class ComputeOptions:
    """What the engine computes with: settings of ``python -m app``, and the solver."""

    backend: BackendName = "auto"
    precision: Precision = "float32"
    solver: str | None = None
    """The model's own if None."""
    device: str = "cpu"


def make_scheduler(folder: Path, mode: str, slots: int | None, clients: int, options: ComputeOptions) -> Scheduler:
    """Return a scheduler like the server's, whose queue has room for one row per client."""
    device = torch.device(options.device)
    checkpoint = jfb.load(folder, device)
    if options.solver is not None:
        serving = checkpoint.config.serving.model_copy(update={"solver": options.solver})
        checkpoint = jfb.Checkpoint(checkpoint.config.model_copy(update={"serving": serving}), checkpoint.network)
    precision = "float32" if mode == "lockstep" else options.precision
    batch = make_batch(checkpoint, folder, device, EngineConfig(slots=slots, backend=options.backend, precision=precision))
    return MODES[mode](batch, max_waiting_rows=clients)


def mixed_tolerances(count: int) -> list[float]:
    """Loose and strict in random order, half of them each."""
    tolerances: list[float] = np.random.default_rng(0).permutation(np.resize([LOOSE, STRICT], count)).tolist()
    return tolerances


def drive(
    scheduler: Scheduler,
    images: np.ndarray,
    clients: int,
    tolerances: Sequence[float],
    kinds: Sequence[object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Run every image once, with ``clients`` of them in flight at any time.

    Args:
        tolerances: one per image.
        kinds: what to group the latencies by, one per image; the tolerances if None.
        clock: in seconds. With one thread, ``time.process_time`` shows what a quiet machine would take.
    """
    kinds = tolerances if kinds is None else kinds
    sent: dict[int, float] = {}
    latencies: dict[object, list[float]] = defaultdict(list)

    def send() -> None:
        number = len(sent)
        if number < len(images):
            sent[number] = clock()
            request = Request("model", 1, images[number].tobytes(), [tolerances[number]], [1000], [None])
            scheduler.submit(RunningRequest(number, request, images.shape[1:]))

    evaluations, start = scheduler.step_evaluations - scheduler.wasted_iterations, clock()
    for _ in range(clients):
        send()
    while scheduler.busy:
        for request in scheduler.tick(clock()):
            latencies[kinds[request.number]].append(1000 * (clock() - sent[request.number]))
            send()
    seconds = clock() - start
    evaluations = scheduler.step_evaluations - scheduler.wasted_iterations - evaluations
    return Run(len(images) / seconds, latencies, evaluations / len(images))


def compare(
    model: Path,
    images: np.ndarray,
    tolerances: Sequence[float],
    kinds: Sequence[object] | None = None,
    *,
    slots: int,
    clients: int,
    rounds: int,
    options: ComputeOptions,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[Run]]:
    """Run every round in both modes, in alternating order, after a warm-up; return the runs of each mode."""
    modes = list(MODES)
    for mode in modes:
        drive(make_scheduler(model, mode, slots, clients, options), images[: 2 * slots], clients, tolerances)  # warm up
    runs: dict[str, list[Run]] = {mode: [] for mode in modes}
    for number in range(rounds):
        for mode in modes if number % 2 else reversed(modes):
            scheduler = make_scheduler(model, mode, slots, clients, options)
            runs[mode].append(drive(scheduler, images, clients, tolerances, kinds, clock))
    return runs


def show(title: str, runs: dict[str, list[Run]], figures: dict[str, Callable[[Run], float]]) -> None:
    """Print a table: for each figure the median of each mode, and of the ratios within a round."""
    table = Table("", *runs, "ratio", title=title)
    for name, figure in figures.items():
        medians = [statistics.median(figure(run) for run in runs[mode]) for mode in runs]
        ratio = statistics.median(figure(b) / figure(a) for a, b in zip(*runs.values(), strict=True))
        table.add_row(name, *(f"{value:.1f}" for value in medians), f"{ratio:.2f}")
    Console().print(table)


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
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    options = ComputeOptions(backend, precision, solver)
    source = read(DataRecipe(source=data), [split], Console()).splits[split]
    inputs = source.inputs[:images].float().numpy()
    tolerances = mixed_tolerances(len(inputs))
    runs = compare(model, inputs, tolerances, slots=slots, clients=clients, rounds=rounds, options=options)
    figures: dict[str, Callable[[Run], float]] = {
        "requests/s": lambda run: run.requests_per_second,
        "step evaluations per request": lambda run: run.evaluations,
        "loose (1e-1) p50, ms": lambda run: run.percentile(LOOSE, 0.5),
        "loose (1e-1) p99, ms": lambda run: run.percentile(LOOSE, 0.99),
        "strict (1e-4) p50, ms": lambda run: run.percentile(STRICT, 0.5),
        "strict (1e-4) p99, ms": lambda run: run.percentile(STRICT, 0.99),
    }
    show(f"{model}: {len(inputs)} images, {slots} slots, {clients} clients, {rounds} rounds", runs, figures)


if __name__ == "__main__":
    typer.run(main)
