"""Warm starts: iterations on sequences of slowly changing images, with and without a session.

Each of the version's samples (one test input per class) becomes several sequences, in which it turns or moves a little per
frame. The engine solves every frame from the initial state and, in a session, from the fixed point of the previous frame. Both
meet the same tolerance.

    python -m benchmarks.warm_start model_store/digits/1
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
SEQUENCES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "turns by 0.5° per frame": lambda images, k: rotate(images, torch.full((len(images),), 0.5 * k)),
    "turns by 2° per frame": lambda images, k: rotate(images, torch.full((len(images),), 2.0 * k)),
    "moves by 0.02 pixels per frame": lambda images, k: translate(images, torch.full((len(images), 2), 0.02 * k)),
    "moves by 0.1 pixels per frame": lambda images, k: translate(images, torch.full((len(images), 2), 0.1 * k)),
    "stands still": lambda images, k: images,
}


def solve(found: jfb.Checkpoint, frames: list[Tensor], tolerance: float, *, warm: bool) -> tuple[float, NDArray[np.floating]]:
    """Return the mean iterations per row and frame, without the first frame, and the logits ``[frames, rows, classes]``."""
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
        request = Request("model", 1, frame.numpy().tobytes(), *limits, session="sequence" if warm else None)
        scheduler.submit(RunningRequest(k, request, found.config.input.shape))
        finished: list[RunningRequest] = []
        while not finished:
            finished = scheduler.tick(0.0)
        iterations.append(finished[0].iterations)
        logits.append(finished[0].logits)
    return float(np.mean(iterations[1:])), np.stack(logits)


def main(
    folder: Annotated[Path, typer.Argument(help="Version folder of an image model, with samples.json.")],
) -> None:
    """Print iterations with and without a session, by sequence and tolerance."""
    torch.set_num_threads(1)
    found = jfb.load(folder)
    still = torch.tensor([sample["input"] for sample in json.loads((folder / "samples.json").read_text())])
    table = Table("sequence", "tolerance", "no session", "session", "saved", "labels that differ")
    for name, frame in SEQUENCES.items():
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
