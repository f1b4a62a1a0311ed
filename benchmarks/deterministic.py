"""The price of JFB_DETERMINISTIC: the engine's core with it and without, on the same images and tolerances.

Each mode has a process of its own, as kernels are chosen for a whole process, and the two take turns. Each closed-loop client
keeps one image in the engine; half of the requests have the tolerance 1e-1 and half 1e-4. The table has medians over the rounds
of the CPU time, with one thread, and medians of the ratios within a round.

    python -m benchmarks.deterministic model_store/digits/1 --data sklearn/digits
"""

import logging
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import structlog
import torch
import typer
from rich.console import Console
from rich.table import Table

import jfb
from app.engine.device import use_deterministic_kernels
from app.engine.loading import make_batch
from app.engine.scheduler import Scheduler
from app.settings import EngineConfig
from benchmarks.engine import drive, mixed_tolerances
from training.data import read
from training.recipe import DataRecipe

schedulers: dict[tuple[Path, int], Scheduler] = {}
"""In a process of one mode: by version and clients."""


def start(deterministic: bool) -> None:
    """Prepare the process of a mode."""
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if deterministic:
        use_deterministic_kernels()


def requests_per_second(model: Path, images: np.ndarray, clients: int, deterministic: bool) -> tuple[float, int]:
    """Run every image once; return requests per second of CPU time, and the number of slots."""
    key = model, clients
    if key not in schedulers:
        config = EngineConfig(deterministic=deterministic, precision="float32")
        batch = make_batch(jfb.load(model), model, torch.device("cpu"), config)
        schedulers[key] = Scheduler(batch, max_waiting_rows=clients)
        drive(schedulers[key], images[:100], clients, mixed_tolerances(100))  # warm up
    run = drive(schedulers[key], images, clients, mixed_tolerances(len(images)), clock=time.process_time)
    return run.requests_per_second, schedulers[key].slots


def main(
    model: Annotated[Path, typer.Argument(help="A version's folder.")],
    data: Annotated[str, typer.Option(help="Source of the images: a hub id, a folder, or sklearn/digits.")],
    clients: Annotated[str, typer.Option(help="Numbers of clients, separated by commas.")] = "1,16,64",
    split: str = "train",
    rounds: int = 8,
) -> None:
    """Print requests per second with and without JFB_DETERMINISTIC, and their ratio."""
    images = read(DataRecipe(source=data), [split], Console()).splits[split].inputs[:1000].float().numpy()
    table = Table("clients", "default", "deterministic", "ratio", title=f"{model}, requests/s of CPU time, one thread")
    modes = {False: ProcessPoolExecutor(1, get_context("spawn"), start, (False,))}
    modes[True] = ProcessPoolExecutor(1, get_context("spawn"), start, (True,))
    for number in map(int, clients.split(",")):
        orders = [(False, True), (True, False)] * (rounds // 2)
        runs = [
            {mode: modes[mode].submit(requests_per_second, model, images, number, mode).result() for mode in order}
            for order in orders
        ]
        median = {mode: statistics.median(run[mode][0] for run in runs) for mode in modes}
        ratio = statistics.median(run[True][0] / run[False][0] for run in runs)
        table.add_row(str(number), *(f"{median[mode]:.0f} ({runs[0][mode][1]} slots)" for mode in modes), f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
