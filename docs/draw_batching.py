"""Draw docs/batching.png: the same requests in lockstep batches, and with iteration-level batching.

Each bar is one image of scikit-learn's digits, as long as the iterations that it takes with the given model.

    python docs/draw_batching.py model_store/digits/1
"""

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import torch
import typer
from sklearn.datasets import load_digits

import jfb

mpl.use("Agg")
from matplotlib import pyplot as plt

LARGE, SMALL = 1e-1, 1e-5
COLOURS = {LARGE: "#e8a33d", SMALL: "#2a6f97"}
WAITING = {"color": "#dddddd", "hatch": "////"}

Bar = tuple[int, int, int]
"""Slot, first iteration, and the iteration at which the slot is free again."""


def lockstep(iterations: list[int], slots: int) -> list[Bar]:
    """Each batch ends with its slowest row, and only then starts the next one."""
    bars, start = [], 0
    for first in range(0, len(iterations), slots):
        batch = iterations[first : first + slots]
        bars += [(slot, start, start + max(batch)) for slot in range(len(batch))]
        start += max(batch)
    return bars


def iteration_level(iterations: list[int], slots: int) -> list[Bar]:
    """Each row takes the slot that is free first."""
    bars, free = [], [0] * slots
    for count in iterations:
        slot = free.index(min(free))
        bars.append((slot, free[slot], free[slot] + count))
        free[slot] += count
    return bars


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a version of the digits model.")],
    out: Path = Path("docs/batching.png"),
    requests: int = 26,
    slots: int = 8,
) -> None:
    """Draw the picture."""
    torch.set_num_threads(1)
    checkpoint = jfb.load(model)
    images = torch.from_numpy(load_digits().images[:requests]).float().unsqueeze(1)
    tolerances = np.random.default_rng(3).permutation(np.resize([LARGE, SMALL], requests)).tolist()
    iterations = jfb.predict(
        checkpoint.network,
        images,
        tolerance=torch.tensor(tolerances),
        max_iterations=1000,
        residual_norm=checkpoint.config.serving.residual_norm,
    ).solution.iterations.tolist()

    figure, panels = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True, layout="constrained")
    schedules = {
        "Lockstep batching: a batch ends with its slowest row": lockstep(iterations, slots),
        "Iteration-level batching: rows leave and join between iterations": iteration_level(iterations, slots),
    }
    for panel, (title, bars) in zip(panels, schedules.items(), strict=True):
        for (slot, start, end), count, tolerance in zip(bars, iterations, tolerances, strict=True):
            panel.barh(slot, count, left=start, height=0.78, color=COLOURS[tolerance], edgecolor="white")
            panel.barh(slot, end - start - count, left=start + count, height=0.78, edgecolor="white", **WAITING)
        panel.set(title=title, ylabel="slot", yticks=[])
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].set_xlabel("iteration")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[tolerance]) for tolerance in (LARGE, SMALL)]
    handles.append(plt.Rectangle((0, 0), 1, 1, edgecolor="white", facecolor=WAITING["color"], hatch=WAITING["hatch"]))
    labels = [f"tolerance {LARGE:g}", f"tolerance {SMALL:g}", "converged, waiting for the slowest row"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    typer.run(main)
