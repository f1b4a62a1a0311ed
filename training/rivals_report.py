"""What a comparison of rivals leaves: a table and a picture, with published figures beside."""

import csv
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from training.rivals import RIVALS, SEARCHED, Outcome, RivalsComparison

COLUMNS = {
    "rival": "",
    "parameters": "parameters",
    "test_accuracy": "test accuracy",
    "epoch_seconds": "an epoch, s",
    "cpu_seconds": "CPU of the whole run, s",
    "memory_mb": "peak memory, MB",
    "step_memory_mb": "of that by training, MB",
    "train_cost": "iterations or evaluations, training",
    "test_cost": "the same, test",
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
"""By the recipe's name, or what stands before its first underscore."""


def write_rivals(folder: Path, comparison: RivalsComparison, command: str) -> None:
    """Write ``rivals.md``, ``rivals.csv`` (a line a rival), ``history.csv`` and the picture ``rivals.png``.

    Args:
        folder: is made if it is not there.
        command: that leads to the comparison, for whoever wants to repeat it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(outcome) for outcome in comparison.outcomes]
    _write_csv(folder / "rivals.csv", rows)
    history = [
        {"rival": outcome.name, "epoch": epoch, "seconds": round(seconds, 2), "validation_accuracy": round(accuracy, 5)}
        for outcome in comparison.outcomes
        for epoch, (seconds, accuracy) in enumerate(outcome.accuracy_by_seconds, 1)
    ]
    _write_csv(folder / "history.csv", history)
    _draw(folder / "rivals.png", comparison)
    (folder / "rivals.md").write_text(_page(comparison, rows, command))


def _row(outcome: Outcome) -> dict[str, object]:
    return {
        "rival": outcome.name,
        "parameters": outcome.parameters,
        "test_accuracy": round(outcome.test_accuracy, 5),
        "epoch_seconds": round(outcome.seconds / len(outcome.accuracy_by_seconds), 2),
        "cpu_seconds": round(outcome.cpu_seconds, 1),
        "memory_mb": round(outcome.memory / 1e6),
        "step_memory_mb": round((outcome.memory - outcome.memory_before) / 1e6),
        "train_cost": round(outcome.train_cost, 2),
        "test_cost": round(outcome.test_cost, 2),
    }


def _page(comparison: RivalsComparison, rows: Sequence[Mapping[str, object]], command: str) -> str:
    recipe = comparison.recipe
    lines = [[*COLUMNS.values()], ["---"] * len(COLUMNS)]
    for row in rows:
        shown = {**row, "rival": f"{RIVALS[str(row['rival'])].title} (`{row['rival']}`)", "parameters": f"{row['parameters']:,}"}
        lines.append([f"{shown[key]}" for key in COLUMNS])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    kind = "that of CUDA's allocator" if comparison.device.startswith("cuda") else "the resident size of the process"
    page = f"""\
# {recipe.name}: implicit networks of other kinds, with the same stem and number of parameters

`{command}`, {datetime.now(UTC).date().isoformat()}; {comparison.device}, {platform.machine()}, {comparison.threads} threads, \
torch {torch.__version__}; {recipe.optimisation.epochs} epochs of batches of {recipe.optimisation.batch_size}, seed \
{recipe.optimisation.seed}, the recipe's data, augmentation and schedule for all. A process each; peak memory is {kind}.

{table}

![accuracy against training time, area by memory](rivals.png)

Iterations are evaluations of the map for one input, which ends by itself; a neural ODE's are evaluations of its field for a
batch, which its integrator steps as one. JFB and `explicit` search at the recipe's tolerance of {recipe.search.tolerance:g},
networks with the exact gradient at {SEARCHED["search.tolerance"]:g}, fixed points and adjoint alike; all are tested at
{recipe.serving.tolerance:g}. Channels were changed until the number of parameters was nearest to that of the recipe's network.
One seed: differences of a few images are noise. Memory that training takes holds the libraries that it loads, which outweigh
small networks. Neural ODEs are not served.
"""
    if published := PUBLISHED.get(recipe.name.split("_")[0]):
        lines = [["published, measured by others on other machines", "parameters", "test accuracy", "source"], ["---"] * 4]
        lines += [[one.name, one.parameters, one.accuracy, one.source] for one in published]
        page += "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    return page


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _draw(path: Path, comparison: RivalsComparison) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(f"{comparison.recipe.name}: same stem, same number of parameters")
    by_time, by_epoch = figure.subplots(1, 2)
    for number, outcome in enumerate(comparison.outcomes):
        colour = f"C{number}"
        memory = max((outcome.memory - outcome.memory_before) / 1e6, 1.0)
        by_time.scatter(outcome.seconds, 100 * outcome.test_accuracy, s=2 * memory, color=colour, alpha=0.55, edgecolors="none")
        by_time.scatter(outcome.seconds, 100 * outcome.test_accuracy, s=6, color=colour)
        seconds, accuracy = zip(*outcome.accuracy_by_seconds, strict=True)
        by_epoch.plot(seconds, [100 * value for value in accuracy], ".-", color=colour, label=RIVALS[outcome.name].title)
    by_time.set(xlabel="seconds of training", ylabel="test accuracy (%)", xscale="log", title="area: memory that training takes")
    by_epoch.set(xlabel="seconds of training", ylabel="validation accuracy (%)", xscale="log", title="as training goes on")
    for axes in (by_time, by_epoch):
        axes.grid(alpha=0.3)
    by_time.margins(0.15)
    best = max(accuracy for outcome in comparison.outcomes for _, accuracy in outcome.accuracy_by_seconds)
    by_epoch.set_ylim(100 * best - 12, 100 * best + 1)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
