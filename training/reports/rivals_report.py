"""The report of a comparison of rivals: a page, tables and a picture, with published figures."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from training.reports.tables import markdown_table, write_csv
from training.rivals.compare import RivalRun, RivalsComparison
from training.rivals.table import RIVALS, SEARCH

COLUMNS = {
    "rival": "",
    "parameters": "parameters",
    "test_accuracy": "test accuracy",
    "epoch_seconds": "epoch (s)",
    "cpu_seconds": "CPU time of the run (s)",
    "memory_mb": "peak memory (MB)",
    "step_memory_mb": "of that for training (MB)",
    "train_cost": "iterations or evaluations, training",
    "test_cost": "iterations or evaluations, test",
}


@dataclass(frozen=True)
class Published:
    """A figure from the literature."""

    name: str
    parameters: str
    accuracy: str
    source: str


JFB_PAPER = "Wu Fung et al., AAAI 2022, table 1"
PUBLISHED = {
    "mnist": [
        Published("explicit network", "54K", "99.4 %", JFB_PAPER),
        Published("neural ODE", "84K", "96.4 %", f"Dupont et al., NeurIPS 2019, as given in {JFB_PAPER}"),
        Published("augmented neural ODE", "84K", "98.2 %", f"Dupont et al., NeurIPS 2019, as given in {JFB_PAPER}"),
        Published("monotone operator network", "84K", "99.2 %", f"Winston and Kolter, NeurIPS 2020, as given in {JFB_PAPER}"),
        Published("JFB-trained implicit ResNet", "54K", "99.4 %", JFB_PAPER),
        Published("the same, Jacobian-based gradient", "54K", "99.2 %", "Wu Fung et al., AAAI 2022, table 2"),
    ]
}
"""By the name of the recipe up to its first underscore."""


def write_rivals_report(folder: Path, comparison: RivalsComparison, command: str) -> None:
    """Write ``rivals.md``, ``rivals.csv`` (one line per rival), ``history.csv`` and the picture ``rivals.png``.

    Args:
        folder: created if it does not exist.
        command: that repeats the comparison.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(run) for run in comparison.runs]
    write_csv(folder / "rivals.csv", rows)
    history = [
        {
            "rival": run.name,
            "epoch": epoch.epoch,
            "seconds": round(epoch.seconds, 2),
            "validation_accuracy": round(epoch.validation_accuracy, 5),
        }
        for run in comparison.runs
        for epoch in run.history
    ]
    write_csv(folder / "history.csv", history)
    _plot(folder / "rivals.png", comparison)
    (folder / "rivals.md").write_text(_page(comparison, rows, command))


def _row(run: RivalRun) -> dict[str, object]:
    return {
        "rival": run.name,
        "parameters": run.parameters,
        "test_accuracy": round(run.test.accuracy, 5),
        "epoch_seconds": round(run.seconds / len(run.history), 2),
        "cpu_seconds": round(run.cpu_seconds, 1),
        "memory_mb": round(run.memory / 1e6),
        "step_memory_mb": round((run.memory - run.memory_before) / 1e6),
        "train_cost": round(run.history[-1].train_iterations, 2),
        "test_cost": round(run.test.iterations, 2),
    }


def _page(comparison: RivalsComparison, rows: Sequence[Mapping[str, object]], command: str) -> str:
    recipe = comparison.recipe
    cells = [
        {**row, "rival": f"{RIVALS[str(row['rival'])].title} (`{row['rival']}`)", "parameters": f"{row['parameters']:,}"}
        for row in rows
    ]
    table = markdown_table([*COLUMNS.values()], ([f"{cell[key]}" for key in COLUMNS] for cell in cells))
    kind = "that of CUDA's allocator" if comparison.device.startswith("cuda") else "the resident size of the process"
    page = f"""\
# {recipe.name}: implicit networks of other kinds, with the same stem and number of parameters

`{command}`, {datetime.now(UTC).date().isoformat()}; {comparison.device}, {platform.machine()}, {comparison.threads} threads, \
torch {torch.__version__}; {recipe.optimisation.epochs} epochs of batches of {recipe.optimisation.batch_size}, seed \
{recipe.optimisation.seed}; the same data, augmentation and schedule for all. One process per rival; peak memory is {kind}.

{table}

![accuracy against training time, area by memory](rivals.png)

Iterations are evaluations of the map per input, each input stopping on its own; for a neural ODE they are evaluations of its
field per batch, which its integrator steps as a whole. JFB and `explicit` search at the recipe's tolerance,
{recipe.search.tolerance:g}; networks with the exact gradient at {SEARCH["search.tolerance"]:g}, for fixed points and adjoint; all
are tested at {recipe.serving.tolerance:g}. Channels were scaled so that the number of parameters is nearest to that of the
recipe's network. One seed: differences of a few images are noise. The memory of training includes the libraries that it loads,
which outweigh small networks. Neural ODEs are not served.
"""
    if published := PUBLISHED.get(recipe.name.split("_")[0]):
        header = ("published, measured by others on other machines", "parameters", "test accuracy", "source")
        page += f"\n{markdown_table(header, ((one.name, one.parameters, one.accuracy, one.source) for one in published))}\n"
    return page


def _plot(path: Path, comparison: RivalsComparison) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(f"{comparison.recipe.name}: same stem, same number of parameters")
    by_time, by_epoch = figure.subplots(1, 2)
    for number, run in enumerate(comparison.runs):
        colour = f"C{number}"
        memory = max((run.memory - run.memory_before) / 1e6, 1.0)
        by_time.scatter(run.seconds, 100 * run.test.accuracy, s=2 * memory, color=colour, alpha=0.55, edgecolors="none")
        by_time.scatter(run.seconds, 100 * run.test.accuracy, s=6, color=colour)
        accuracy = [100 * epoch.validation_accuracy for epoch in run.history]
        by_epoch.plot([epoch.seconds for epoch in run.history], accuracy, ".-", color=colour, label=RIVALS[run.name].title)
    by_time.set(xlabel="seconds of training", ylabel="test accuracy (%)", xscale="log", title="area: memory of training")
    by_epoch.set(xlabel="seconds of training", ylabel="validation accuracy (%)", xscale="log", title="during training")
    for axes in (by_time, by_epoch):
        axes.grid(alpha=0.3)
    by_time.margins(0.15)
    best = max(epoch.validation_accuracy for run in comparison.runs for epoch in run.history)
    by_epoch.set_ylim(100 * best - 12, 100 * best + 1)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
