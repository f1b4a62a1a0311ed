"""The price of JFB_DETERMINISTIC: the engine's core with it and without, on the same images and tolerances.

Each mode has a process of its own, as kernels are chosen for a whole process, and the two take turns. Each closed-loop client
keeps one image in the engine; half of the requests have the tolerance 1e-1 and half 1e-4. The table has medians over the rounds
of the CPU time, with one thread, or on a GPU of the time that passes; and medians of the ratios within a round. Exits with
status 1 if a row gets other bits alone than in company.

    python -m benchmarks.deterministic model_store/digits/1 --data sklearn/digits
    python -m benchmarks.deterministic --precision auto     # on a GPU: the cifar10 recipe's network, untrained, on random images
"""

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import structlog
import torch
import typer
from rich.console import Console

import jfb
from app.engine.device import set_up_torch
from app.engine.loading import make_batch
from app.engine.scheduler import Scheduler
from app.settings import EngineConfig, Precision
from benchmarks.engine import drive, mixed_tolerances
from benchmarks.gpu_batching import random_images, show, write
from benchmarks.gpu_check import Finding, run_checks
from benchmarks.gpu_engine import compute
from benchmarks.untrained import ModelOrUntrained, model_or_untrained
from training.data import read
from training.device import choose_device
from training.recipe import DataRecipe

COMPARED_ROWS = 8


@cache
def scheduler_of(model: Path, config: EngineConfig) -> Scheduler:
    """Return the one scheduler of this process, warmed up."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    set_up_torch(config)
    device = torch.device(config.device)
    checkpoint = jfb.load(model, device)
    scheduler = Scheduler(make_batch(checkpoint, model, device, config), max_waiting_rows=config.max_waiting_rows)
    drive(scheduler, random_images(checkpoint, 100), 100, mixed_tolerances(100))
    return scheduler


def requests_per_second(model: Path, images: np.ndarray, clients: int, config: EngineConfig) -> tuple[float, int]:
    """Run every image once; return requests per second, and the number of slots."""
    scheduler = scheduler_of(model, config)
    clock = time.process_time if config.device == "cpu" else time.perf_counter
    run = drive(scheduler, images, clients, mixed_tolerances(len(images)), clock=clock)
    return run.requests_per_second, scheduler.slots


def different_bits(model: Path, images: np.ndarray, config: EngineConfig) -> float:
    """Return the share of the first rows whose responses differ alone and in the company of all."""
    scheduler, solver = scheduler_of(model, config), jfb.load(model).config.serving.solver
    tolerance, cap = np.array(mixed_tolerances(len(images))), np.full(len(images), 1000)
    first = [slice(row, row + 1) for row in range(COMPARED_ROWS)]
    orders = [slice(None), *first]
    together, *alone = (compute(scheduler, images[k], tolerance[k], cap[k], solver) for k in orders)
    pairs = zip((request for (request,) in alone), together, strict=False)
    facts = [[(one.logits.tobytes(), one.iterations, one.residual, one.status) for one in pair] for pair in pairs]
    return float(np.mean([one != other for one, other in facts]))


def main(
    model: ModelOrUntrained = None,
    data: Annotated[str | None, typer.Option(help="A hub id, a folder, or sklearn/digits. Random images by default.")] = None,
    clients: Annotated[str, typer.Option(help="Numbers of clients, separated by commas.")] = "1,16,64",
    split: str = "train",
    count: Annotated[int, typer.Option("--images", min=COMPARED_ROWS, help="At most, per round and mode.")] = 1000,
    rounds: Annotated[int, typer.Option(min=2, help="An even number.")] = 8,
    device: Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of the default mode.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="CSV file to write the table to.")] = None,
) -> None:
    """Print requests per second with and without JFB_DETERMINISTIC, and their ratio."""
    on = choose_device(device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = model_or_untrained(model, Path(temporary))
        if data:
            images = read(DataRecipe(source=data), [split], Console()).splits[split].inputs[:count].float().numpy()
        else:
            images = random_images(jfb.load(folder), count)
        modes = {
            fixed: EngineConfig(deterministic=fixed, precision="float32" if fixed else precision, device=str(on), threads=1)
            for fixed in (False, True)
        }
        pools = {fixed: ProcessPoolExecutor(1, get_context("spawn")) for fixed in modes}

        def check() -> Iterator[Finding]:
            share = pools[True].submit(different_bits, folder, images[:100], modes[True]).result()
            yield Finding("share of rows with other bits alone", share, 0.0)

        status = run_checks({"deterministic": check()}, show_all=True)
        rows: list[dict[str, object]] = []
        for number in map(int, clients.split(",")):
            runs = [
                {
                    fixed: pools[fixed].submit(requests_per_second, folder, images, number, modes[fixed]).result()
                    for fixed in order
                }
                for order in [(False, True), (True, False)] * (rounds // 2)
            ]
            row: dict[str, object] = {"clients": number}
            for fixed, name in ((False, "default"), (True, "deterministic")):
                row |= {name: statistics.median(run[fixed][0] for run in runs), f"slots, {name}": runs[0][fixed][1]}
            rows.append(row | {"ratio": statistics.median(run[True][0] / run[False][0] for run in runs)})
            write(out, rows)
        show(f"{model or 'cifar10, untrained'}, requests/s{' of CPU time, one thread' if on.type == 'cpu' else ''}", rows)
    sys.exit(status)


if __name__ == "__main__":
    typer.run(main)
