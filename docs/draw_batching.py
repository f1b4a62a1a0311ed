"""Draws docs/batching.png: the same requests in lockstep batches and in a batch that is reshaped between iterations.

Every bar is a real request to a real scheduler, driven a tick at a time.

    PYTHONPATH=. python docs/draw_batching.py model_store/digits/1
"""

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import torch
import typer

import jfb
from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine_client.messages import Request
from benchmarks.lockstep import LockstepScheduler
from jfb.solvers import Picard
from training.data import DIGITS, read
from training.recipe import load_recipe

mpl.use("Agg")
from matplotlib import pyplot as plt
from rich.console import Console

LOOSE, STRICT = 1e-1, 1e-5
COLOURS = {LOOSE: "#e8a33d", STRICT: "#2a6f97"}


def bars(
    checkpoint: jfb.Checkpoint, images: np.ndarray, tolerances: list[float], kind: type[Scheduler], slots: int
) -> list[tuple[int, int]]:
    """When each request entered and left the batch, in ticks."""
    batch = RunningBatch(
        TorchBackend(checkpoint.network),
        {"picard": Picard()},
        checkpoint.config.serving.residual_norm,
        checkpoint.config.input.shape,
        slots=slots,
    )
    scheduler = kind(batch, max_waiting_rows=len(images))
    for number, image in enumerate(images):
        request = Request("digits", 1, image.tobytes(), [tolerances[number]], [1000], [None])
        scheduler.submit(RunningRequest(number, request, image.shape))
    entered: dict[int, int] = {}
    left: dict[int, int] = {}
    tick = 0
    waiting = list(range(len(images)))
    while scheduler.busy:
        for ended in scheduler.tick(0.0):
            left[ended.number] = tick
        admitted = len(images) - scheduler.waiting_rows
        for number in waiting[:]:
            if number < admitted:
                entered[number] = tick
                waiting.remove(number)
        tick += 1
    return [(entered[number], left[number]) for number in range(len(images))]


def main(
    model: Annotated[Path, typer.Argument(help="A version's folder of the digits model.")],
    out: Path = Path("docs/batching.png"),
    requests: int = 26,
    slots: int = 8,
) -> None:
    """Draw the picture."""
    torch.set_num_threads(1)
    checkpoint = jfb.load(model)
    images = read(load_recipe("digits").data, ["train"], Console()).splits["train"].inputs[:requests].float().numpy()
    assert load_recipe("digits").data.source == DIGITS
    tolerances = np.random.default_rng(3).permutation(np.resize([LOOSE, STRICT], requests)).tolist()
    own = jfb.predict(
        checkpoint.network,
        torch.from_numpy(images),
        tolerance=torch.tensor(tolerances),
        max_iterations=1000,
        residual_norm=checkpoint.config.serving.residual_norm,
    ).solution.iterations.tolist()

    titles = {
        LockstepScheduler: "lockstep: a batch ends with its worst row",
        Scheduler: "here: rows leave and join between iterations",
    }
    figure, panels = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True, layout="constrained")
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        free_from = [0] * slots
        for number, (begin, end) in enumerate(bars(checkpoint, images, tolerances, kind, slots)):
            lane = next(lane for lane in range(slots) if free_from[lane] <= begin)
            free_from[lane] = end
            panel.barh(lane, own[number], left=begin, height=0.78, color=COLOURS[tolerances[number]], edgecolor="white")
            panel.barh(
                lane,
                end - begin - own[number],
                left=begin + own[number],
                height=0.78,
                color="#dddddd",
                hatch="////",
                edgecolor="white",
            )
        panel.set(title=title, ylabel="slot", yticks=[])
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].set_xlabel("iteration")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[LOOSE]), plt.Rectangle((0, 0), 1, 1, color=COLOURS[STRICT])]
    handles.append(plt.Rectangle((0, 0), 1, 1, facecolor="#dddddd", hatch="////", edgecolor="white"))
    figure.legend(
        handles,
        [f"tolerance {LOOSE:g}", f"tolerance {STRICT:g}", "iterated for a neighbour"],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    typer.run(main)
