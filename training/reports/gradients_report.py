"""The report of a comparison of gradients: a page, tables and two pictures."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from training.comparison.gradients import GradientComparison, GradientRun
from training.reports.tables import markdown_table, write_csv

COLUMNS = {
    "gradient": "gradient",
    "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "seconds": "training (s)",
    "step_ms": "step, median (ms)",
    "step_cpu_ms": "CPU time per step, median (ms)",
    "memory_mb": "peak memory (MB)",
    "step_memory_mb": "of that for training (MB)",
    "train_iterations": "iterations, training",
    "test_iterations": "iterations, test",
    "converged": "converged, test",
}


def write_gradients_report(folder: Path, comparison: GradientComparison, command: str) -> None:
    """Write ``comparison.md``, ``comparison.csv`` (one line per gradient), ``history.csv``, ``alignment.csv``, ``memory.csv``,
    ``comparison.png`` and ``memory.png``.

    Args:
        folder: created if it does not exist.
        command: that repeats the comparison.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(run) for run in comparison.runs]
    write_csv(folder / "comparison.csv", rows)
    history = [{"gradient": run.gradient, **asdict(epoch)} for run in comparison.runs for epoch in run.history]
    write_csv(folder / "history.csv", history)
    write_csv(folder / "alignment.csv", [asdict(alignment) for alignment in comparison.alignments])
    write_csv(folder / "memory.csv", [asdict(point) for point in comparison.memory])
    _plot_runs(folder / "comparison.png", comparison)
    _plot_memory(folder / "memory.png", comparison)
    (folder / "comparison.md").write_text(_page(comparison, rows, command))


def _row(run: GradientRun) -> dict[str, object]:
    return {
        "gradient": run.gradient,
        "test_accuracy": round(run.test.accuracy, 5),
        "validation_accuracy": round(run.validation.accuracy, 5),
        "seconds": round(run.seconds, 2),
        "step_ms": round(1000 * run.step_seconds, 2),
        "step_cpu_ms": round(1000 * run.step_cpu_seconds, 2),
        "memory_mb": round(run.memory / 1e6),
        "step_memory_mb": round((run.memory - run.memory_before) / 1e6),
        "train_iterations": round(run.history[-1].train_iterations, 2),
        "test_iterations": round(run.test.iterations, 2),
        "converged": round(run.test.converged, 5),
    }


def _page(comparison: GradientComparison, rows: Sequence[Mapping[str, object]], command: str) -> str:
    table = markdown_table([*COLUMNS.values()], ([f"{row[key]}" for key in COLUMNS] for row in rows))
    recipe, aligned = comparison.recipe, comparison.alignments
    cosines = sorted(alignment.cosine for alignment in aligned)
    factors = [alignment.contraction_max for alignment in aligned]
    bounds = [alignment.contraction_bound for alignment in aligned if alignment.contraction_bound is not None]
    kind = "that of CUDA's allocator" if comparison.device.startswith("cuda") else "the resident size of the process"
    return f"""\
# {recipe.name}: the same network under several gradients

`{command}`, {datetime.now(UTC).date().isoformat()}; {comparison.device}, {platform.machine()}, {comparison.threads} threads, \
torch {torch.__version__}; {recipe.optimisation.epochs} epochs of batches of {recipe.optimisation.batch_size}, seed \
{recipe.optimisation.seed}; search at tolerance {recipe.search.tolerance:g} ({recipe.search.residual_norm}), at most \
{recipe.search.max_iterations} iterations. One process per gradient; peak memory is {kind}.

{table}

![accuracy against time and epochs; cosine and contraction factor against steps](comparison.png)

Cosine between the JFB direction and the exact gradient on {len(aligned)} batches during training under JFB: minimum \
{cosines[0]:.4f}, median {cosines[len(cosines) // 2]:.4f}. Largest contraction factor measured at a fixed point: \
{max(factors):.3f}{f"; largest guaranteed bound: {max(bounds):.3f}" if bounds else ""}.

![peak memory against the number of iterations](memory.png)
"""


def _plot_runs(path: Path, comparison: GradientComparison) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(f"{comparison.recipe.name}: the same network under several gradients")
    by_time, by_epoch, cosine, contraction = figure.subplots(2, 2).flatten()
    for run in comparison.runs:
        accuracy = [100 * epoch.validation_accuracy for epoch in run.history]
        by_time.plot([epoch.seconds for epoch in run.history], accuracy, ".-", label=run.gradient)
        by_epoch.plot([epoch.epoch for epoch in run.history], accuracy, ".-", label=run.gradient)
    aligned = comparison.alignments
    steps = [alignment.step for alignment in aligned]
    cosine.plot(steps, [alignment.cosine for alignment in aligned], ".-", label="JFB direction and exact gradient")
    contraction.plot(steps, [a.contraction_max for a in aligned], ".-", label="largest at a batch's fixed points")
    contraction.plot(steps, [a.contraction_mean for a in aligned], ".-", label="mean at a batch's fixed points")
    if aligned[0].contraction_bound is not None:
        contraction.plot(steps, [a.contraction_bound for a in aligned], "k--", label="guaranteed bound")
    for axes, x, y in (
        (by_time, "seconds of training", "validation accuracy (%)"),
        (by_epoch, "epochs", "validation accuracy (%)"),
        (cosine, "steps", "cosine"),
        (contraction, "steps", "contraction factor"),
    ):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    cosine.set_ylim(min(0.0, *(alignment.cosine for alignment in aligned)), 1.02)
    contraction.set_ylim(0, 1.02)
    figure.savefig(path, dpi=110)


def _plot_memory(path: Path, comparison: GradientComparison) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for run in comparison.runs:
        points = [point for point in comparison.memory if point.gradient == run.gradient]
        # Growth, because libraries that are loaded during a run use more memory than small networks.
        growth = [(point.bytes - points[0].bytes) / 1e6 for point in points]
        axes.plot([point.iterations for point in points], growth, ".-", label=run.gradient)
    axes.set_title(f"{comparison.recipe.name}: memory of a training step, batch {comparison.recipe.optimisation.batch_size}")
    axes.set_xlabel("iterations")
    axes.set_ylabel("peak memory above that at one iteration (MB)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
