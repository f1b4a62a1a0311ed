"""Warm starts: iterations on films of slowly changing images, with a session and without.

Each image of the version's samples (a test input of each class) becomes films: it turns, or it moves, a little a frame. The
engine solves every frame from nothing and, in a session, from where the frame before ended. Both meet the same tolerance.

    python benchmarks/warm_start.py model_store/digits/1
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from kornia.geometry.transform import rotate, translate
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

import jfb
from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine.warm_starts import WarmStarts
from app.engine_client.messages import Request
from jfb.solvers import SOLVERS

FRAMES = 30
FILMS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "turns by 0.5° a frame": lambda images, k: rotate(images, torch.full((len(images),), 0.5 * k)),
    "turns by 2° a frame": lambda images, k: rotate(images, torch.full((len(images),), 2.0 * k)),
    "moves by 0.02 pixels a frame": lambda images, k: translate(images, torch.full((len(images), 2), 0.02 * k)),
    "moves by 0.1 pixels a frame": lambda images, k: translate(images, torch.full((len(images), 2), 0.1 * k)),
    "stands still": lambda images, k: images,
}


def solve(found: jfb.Checkpoint, frames: list[Tensor], tolerance: float, *, warm: bool) -> tuple[float, NDArray[np.floating]]:
    """Mean iterations a row and frame after the first, and the logits ``[frames, rows, classes]``."""
    serving = found.config.serving
    rows = len(frames[0])
    batch = RunningBatch(
        TorchBackend(found.network),
        {serving.solver: SOLVERS[serving.solver]()},
        serving.residual_norm,
        found.config.input.shape,
        slots=rows,
    )
    scheduler = Scheduler(batch, max_waiting_rows=rows, warm_starts=WarmStarts(2**30, 60))
    iterations, logits = [], []
    for k, frame in enumerate(frames):
        rows = len(frame)
        limits = [tolerance] * rows, [1000] * rows, [None] * rows
        request = Request("model", 1, frame.numpy().tobytes(), *limits, session="film" if warm else None)
        scheduler.submit(RunningRequest(k, request, found.config.input.shape))
        finished: list[RunningRequest] = []
        while not finished:
            finished = scheduler.tick(0.0)
        iterations.append(finished[0].iterations)
        logits.append(finished[0].logits)
    return float(np.mean(iterations[1:])), np.stack(logits)


def main(
    folder: Annotated[Path, typer.Argument(help="A version of an image model, with samples.json.")],
) -> None:
    """Measure warm starts."""
    torch.set_num_threads(1)
    found = jfb.load(folder)
    still = torch.tensor([sample["input"] for sample in json.loads((folder / "samples.json").read_text())])
    table = Table("film", "tolerance", "from nothing", "session", "saved", "labels that differ")
    for name, frame in FILMS.items():
        frames = [frame(still, k).float() for k in range(FRAMES)]
        for tolerance in (1e-2, 1e-3, 1e-5):
            cold, cold_logits = solve(found, frames, tolerance, warm=False)
            warm, warm_logits = solve(found, frames, tolerance, warm=True)
            differ = int((cold_logits.argmax(2) != warm_logits.argmax(2)).sum())
            of = cold_logits.shape[0] * cold_logits.shape[1]
            table.add_row(name, f"{tolerance:g}", f"{cold:.1f}", f"{warm:.1f}", f"{1 - warm / cold:.0%}", f"{differ} of {of}")
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
