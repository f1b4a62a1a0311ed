"""``python -m training compare``"""

import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import BadParameter, Option

from jfb.config import must_be_one_of
from jfb.gradients import GRADIENTS
from training.comparison.gradients import compare_gradients
from training.device import choose_device
from training.loop.network import check_before_data
from training.recipe import load_recipe, shipped_recipes
from training.reports.gradients_report import write_gradients_report
from training.reports.rivals_report import write_rivals_report
from training.rivals.compare import compare_rivals
from training.rivals.table import RIVALS

ALL_GRADIENTS = ", ".join(GRADIENTS)
ALL_RIVALS = ", ".join(RIVALS)


def compare(
    recipe: Annotated[str, Option(help=f"A shipped recipe ({', '.join(shipped_recipes())}), or the path of a .yaml file.")],
    gradients: Annotated[str, Option(help="Gradients to compare, separated by commas.")] = ALL_GRADIENTS,
    epochs: Annotated[int | None, Option(help="Train for this many epochs instead of the recipe's.")] = None,
    rivals: Annotated[
        bool,
        Option("--rivals", help="Compare other kinds of networks of the same size instead of gradients."),
    ] = False,
    only: Annotated[str, Option(help="With --rivals: the ones to compare, separated by commas.")] = ALL_RIVALS,
    data: Annotated[
        Path | None, Option(exists=True, file_okay=False, help="Read the data from this folder instead of the recipe's source.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            file_okay=False, help="Folder of the report. Default: <recipe> in benchmarks/comparison, or in benchmarks/rivals."
        ),
    ] = None,
    device: Annotated[str, Option(envvar="JFB_DEVICE", help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Train one network under several gradients, or its rivals, and write a report."""
    console = Console()
    if rivals and gradients != ALL_GRADIENTS:
        raise BadParameter(f"--gradients must be left out with --rivals (got {gradients})")
    if not rivals and only != ALL_RIVALS:
        raise BadParameter(f"--only needs --rivals (got {only})")
    names = _names("--only", "rival", only, RIVALS) if rivals else _names("--gradients", "gradient", gradients, GRADIENTS)
    changes = {"optimisation.epochs": epochs, "data.source": None if data is None else str(data)}
    chosen = load_recipe(recipe).changed({key: value for key, value in changes.items() if value is not None})
    check_before_data(chosen)
    command = f"python -m training {shlex.join(sys.argv[1:])}"
    folder = out or Path("benchmarks") / ("rivals" if rivals else "comparison") / chosen.name
    if rivals:
        for comparison in compare_rivals(chosen, names, device=choose_device(device), console=console):
            write_rivals_report(folder, comparison, command)  # after each rival, so that an interrupted run keeps its results
            rival = comparison.runs[-1]
            console.print(
                f"{rival.name}: test accuracy {rival.test.accuracy:.2%}, {rival.parameters:,} parameters, "
                f"{rival.seconds:.0f} s of training, peak memory {rival.memory / 1e6:.0f} MB",
                soft_wrap=True,
            )
        console.print(f"report: {folder}", soft_wrap=True)
        return
    gradients_compared = compare_gradients(chosen, names, device=choose_device(device), console=console)
    write_gradients_report(folder, gradients_compared, command)
    for run in gradients_compared.runs:
        console.print(
            f"{run.gradient}: test accuracy {run.test.accuracy:.2%}, {1000 * run.step_seconds:.1f} ms per step, "
            f"peak memory {run.memory / 1e6:.0f} MB",
            soft_wrap=True,
        )
    console.print(f"report: {folder}", soft_wrap=True)


def _names(option: str, kind: str, given: str, known: Collection[str]) -> list[str]:
    """Split names at commas, and refuse unknown or repeated ones."""
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in known:
            raise BadParameter(f"{option} {must_be_one_of(known, name)}")
    if len(set(names)) != len(names):
        raise BadParameter(f"{option} must name each {kind} once (got {given})")
    return names
