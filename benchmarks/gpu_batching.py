"""Iteration-level batching on a device, against lockstep batching, against what its kernels allow, and for one client.

For each number of slots, with twice as many clients in a closed loop, half of the requests at the tolerance 1e-1 and half at
1e-4: requests/s of the engine's core with iteration-level batching and in lockstep (``benchmarks/lockstep.py``), both in float32;
with the precision that the server chooses; and of a bare loop without an engine, which iterates each batch until its slowest row
has converged. The *bound* is what the device could answer
if it did nothing but the evaluations that the requests need, in full batches, with graphs on CUDA. The first table is the time of
one request of a single client, as a multiple of replaying the graphs of its iterations.

    python -m benchmarks.gpu_batching                              # the cifar10 recipe's network, untrained
    python -m benchmarks.gpu_batching model_store/authors_mnist/1
"""

import csv
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import structlog
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import jfb
from app.engine.graphs import CudaGraphs, eager
from app.engine.scheduler import Scheduler
from app.settings import BackendName
from benchmarks.engine import MODES, ComputeOptions, Run, drive, make_scheduler, mixed_tolerances
from benchmarks.gpu_steps import seconds_per_call
from benchmarks.untrained import ModelOrUntrained, model_or_untrained
from jfb import Checkpoint, residual
from training.device import choose_device, now

ONE_CLIENT = "one client"
AUTO = "precision auto"
"""Iteration-level batching, with low precision if the engine measures that to be faster."""


class Bare:
    """A network without an engine, on a batch that keeps its place on the device; each part is a graph where there is CUDA.

    A graph that cannot be captured is logged, and its part is computed eagerly.
    """

    def __init__(self, checkpoint: Checkpoint, rows: int, device: torch.device) -> None:
        network = checkpoint.network.folded().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = checkpoint.config.serving.residual_norm
        self.inputs = torch.zeros(rows, *checkpoint.config.input.shape, device=device)
        self.injection = network.inject(self.inputs).clone()
        self.state = network.first_state(self.injection).clone()
        self.moved = residual(self.state, self.state, self.norm)
        self.logits = network.readout(self.state)

        def inject() -> None:
            self.injection.copy_(network.inject(self.inputs))
            self.state.copy_(network.first_state(self.injection))

        def step() -> None:
            next_state = network.step(self.state, self.injection)
            self.moved.copy_(residual(self.state, next_state, self.norm))
            self.state.copy_(next_state)

        def readout() -> None:
            self.logits.copy_(network.readout(self.state))

        graphs = CudaGraphs(device) if device.type == "cuda" else None
        self.inject, self.step, self.readout = map(graphs or eager, (inject, step, readout))

    def solve_in_lockstep(self, inputs: Tensor, tolerance: float, max_iterations: int = 1000) -> Tensor:
        """Iterate until the slowest row has converged; return the logits."""
        self.inputs.copy_(inputs, non_blocking=True)
        self.inject()
        for _ in range(max_iterations):
            self.step()
            if bool((self.moved <= tolerance).all()):
                break
        self.readout()
        return self.logits.cpu()

    def replay(self, inputs: Tensor, iterations: int) -> Tensor:
        """Iterate as often as is known to be enough; return the logits."""
        self.inputs.copy_(inputs, non_blocking=True)
        self.inject()
        for _ in range(iterations):
            self.step()
        self.readout()
        return self.logits.cpu()


def measure_slots(
    folder: Path, checkpoint: Checkpoint, images: np.ndarray, slots: int, rounds: int, seconds: float, options: ComputeOptions
) -> dict[str, object]:
    """Measure one number of slots."""
    device = torch.device(options.device)
    tolerances = mixed_tolerances(len(images))
    ticks = 0
    schedulers = {mode: make_scheduler(folder, mode, slots, 2 * slots, options) for mode in MODES}
    schedulers[AUTO] = make_scheduler(folder, "iteration", slots, 2 * slots, replace(options, precision="auto"))
    runs: dict[str, list[Run]] = {mode: [] for mode in schedulers}
    for scheduler in schedulers.values():
        drive(scheduler, images[: 2 * slots], 2 * slots, tolerances)  # warm up
    for number in range(rounds):
        for mode in list(schedulers)[:: -1 if number % 2 else 1]:
            ticks = schedulers["iteration"].ticks if mode == "iteration" else ticks
            runs[mode].append(drive(schedulers[mode], images, 2 * slots, tolerances))
    per_second = {mode: statistics.median(run.requests_per_second for run in of_mode) for mode, of_mode in runs.items()}
    last = runs["iteration"][-1]
    ticks = schedulers["iteration"].ticks - ticks
    bare = Bare(checkpoint, slots, device)
    step, ends = (
        seconds_per_call(bare.step, device, seconds),
        sum(seconds_per_call(part, device, seconds) for part in (bare.inject, bare.readout)),
    )
    bound = slots / (ends + last.evaluations * step)
    return {
        "slots": slots,
        "requests/s": per_second["iteration"],
        "lockstep": per_second["lockstep"],
        "of lockstep": statistics.median(
            one.requests_per_second / other.requests_per_second
            for one, other in zip(runs["iteration"], runs["lockstep"], strict=True)
        ),
        AUTO: per_second[AUTO],
        "low precision": low_precision_of(schedulers[AUTO]),
        "bare loop": bare_loop(bare, images, tolerances, slots, device),
        "bound": bound,
        "of bound": per_second["iteration"] / bound,
        "iterations per request": last.evaluations,
        "µs per iteration": 1e6 * len(images) / last.requests_per_second / ticks,
        "bare µs per iteration": 1e6 * step,
    }


def low_precision_of(scheduler: Scheduler) -> str:
    """Return the name of the backend in which rows start; empty if that is the one in which they end."""
    names = [type(lane.backend).__name__ for lane in scheduler._batch.lanes if lane.full_precision is not None]
    return names[0] if names else ""


def bare_loop(bare: Bare, images: np.ndarray, tolerances: Sequence[float], slots: int, device: torch.device) -> float:
    """Return the requests/s of a loop over full batches."""
    batches = [*zip(torch.from_numpy(images).split(slots), torch.tensor(tolerances).split(slots), strict=True)]
    start = now(device)
    for inputs, tolerance in batches:
        bare.solve_in_lockstep(inputs, float(tolerance.min()))
    return len(images) / (now(device) - start)


def measure_one_client(folder: Path, checkpoint: Checkpoint, images: np.ndarray, options: ComputeOptions) -> dict[str, object]:
    """Measure the latency of one client in the engine's core, and of replaying the same iterations."""
    device = torch.device(options.device)
    tolerances = mixed_tolerances(len(images))
    scheduler = make_scheduler(folder, "iteration", 1, 1, options)
    drive(scheduler, images[:4], 1, tolerances)
    engine = statistics.median(1 / drive(scheduler, images, 1, tolerances).requests_per_second for _ in range(3))
    rows = torch.from_numpy(images)
    iterations = jfb.predict(
        checkpoint.network,
        rows.to(device),
        tolerance=torch.tensor(tolerances),
        max_iterations=1000,
        residual_norm=checkpoint.config.serving.residual_norm,
    ).solution.iterations.tolist()
    bare = Bare(checkpoint, 1, device)
    bare.replay(rows[:1], 2)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        for row, count in zip(rows.split(1), iterations, strict=True):
            bare.replay(row, count)
        taken.append((time.perf_counter() - start) / len(rows))
    replay = statistics.median(taken)
    return {"": ONE_CLIENT, "ms in the engine": 1e3 * engine, "ms of bare replay": 1e3 * replay, "of replay": engine / replay}


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=180).print(table)


def write(path: Path | None, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table as CSV."""
    if path:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@torch.inference_mode()
def main(
    model: ModelOrUntrained = None,
    slots: Annotated[str, typer.Option(help="Separated by commas.")] = "64,256,1024",
    requests: Annotated[int, typer.Option(min=1, help="Requests per slot and round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(min=0.0, help="Duration of the timing of each kernel.")] = 0.3,
    device: Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
    backend: BackendName = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for batching.csv and one_client.csv.")] = None,
) -> None:
    """Measure and print both tables."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))  # which backends, and why
    torch.backends.cudnn.allow_tf32 = False  # as in the server
    on = choose_device(device)
    options = ComputeOptions(backend, device=str(on))
    with tempfile.TemporaryDirectory() as temporary:
        folder = model_or_untrained(model, Path(temporary))
        checkpoint = jfb.load(folder, on)
        checkpoint.network.eval()
        one = [measure_one_client(folder, checkpoint, random_images(checkpoint, 10 * requests), options)]
        write(out and out / "one_client.csv", one)
        show("One client", one)
        rows = []
        for number in _numbers(slots):
            images = random_images(checkpoint, requests * number)
            rows.append(measure_slots(folder, checkpoint, images, number, rounds, seconds, options))
            write(out and out / "batching.csv", rows)
        show(f"{model or 'cifar10, untrained'}, requests/s by slots", rows)


def random_images(checkpoint: Checkpoint, count: int) -> np.ndarray:
    """Uniform in the range of the model's inputs."""
    spec = checkpoint.config.input
    return (np.random.default_rng(0).random((count, *spec.shape)) * (spec.high or 1.0)).astype(np.float32)


def _numbers(text: str) -> Iterator[int]:
    return map(int, text.split(","))


if __name__ == "__main__":
    typer.run(main)
