"""Iteration-level batching against lockstep batching on mazes of mixed difficulty, all at one tolerance.

As ``benchmarks.engine``, except that only the inputs make rows differ: a maze takes about as many iterations as its flood is
deep. Easy and hard are the shallowest and the deepest quarter of the mazes. Times are those of the processor, so that other
work on the machine does not count.

    python -m training train mazes
    OMP_NUM_THREADS=1 python -m benchmarks.engine_mazes model_store/mazes/1
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import structlog
import torch
import typer

import jfb
from app.settings import BackendName
from benchmarks.engine import ComputeOptions, Run, compare, show
from benchmarks.mazes import SEED
from jfb.checkpoint import save
from training.data.mazes import distinct_mazes

EASY, MEDIUM, HARD = "easy", "medium", "hard"


def main(
    model: Annotated[Path, typer.Argument(help="A version's folder.")],
    mazes: Annotated[int, typer.Option(help="Number of mazes per round and mode.")] = 1000,
    size: Annotated[int, typer.Option(help="Cells per side; the weights do not depend on it.")] = 8,
    tolerance: float = 1e-3,
    slots: int = 32,
    clients: int = 64,
    rounds: int = 5,
    backend: BackendName = "auto",
) -> None:
    """Print the figures of both modes, and their ratios."""
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    made = distinct_mazes(size, mazes, seed=SEED)
    shallow, deep = np.quantile(made.flood_depth, [0.25, 0.75])
    kinds = np.select([made.flood_depth <= shallow, made.flood_depth >= deep], [EASY, HARD], MEDIUM).tolist()
    inputs = made.images().astype(np.float32)
    with TemporaryDirectory() as folder:
        checkpoint = jfb.load(model)
        spec = checkpoint.config.input.model_copy(update={"shape": inputs.shape[1:]})
        save(Path(folder), checkpoint.config.model_copy(update={"input": spec}), checkpoint.network)
        runs = compare(
            Path(folder),
            inputs,
            [tolerance] * mazes,
            kinds,
            slots=slots,
            clients=clients,
            rounds=rounds,
            options=ComputeOptions(backend),
            clock=time.process_time,
        )
    figures: dict[str, Callable[[Run], float]] = {
        "requests/s": lambda run: run.requests_per_second,
        "step evaluations per request": lambda run: run.evaluations,
    }
    for kind, limit in ((EASY, f"≤ {shallow:g}"), (HARD, f"≥ {deep:g}")):
        for share in (50, 99):
            name = f"{kind} (flood depth {limit}, {kinds.count(kind)} mazes) p{share}, ms"
            figures[name] = lambda run, kind=kind, share=share: run.percentile(kind, share / 100)  # type: ignore[misc]
    show(
        f"{mazes} mazes of {size} × {size} cells, tolerance {tolerance:g}, {slots} slots, {clients} clients, {rounds} rounds",
        runs,
        figures,
    )


if __name__ == "__main__":
    typer.run(main)
