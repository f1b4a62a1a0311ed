"""``python -m training compare``"""

import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import BadParameter, Option

from jfb.gradients import GRADIENTS
from training.commands.train import choose_device
from training.comparison import compare as run
from training.comparison_report import write_comparison
from training.recipe import load_recipe, shipped_recipes
from training.rivals import RIVALS, compare_rivals
from training.rivals_report import write_rivals


def compare(
    recipe: Annotated[str, Option(help=f"A shipped recipe ({', '.join(shipped_recipes())}), or the path of a .yaml file.")],
    gradients: Annotated[str, Option(help="Separated by commas.")] = ",".join(GRADIENTS),
    epochs: Annotated[int | None, Option(help="Instead of the recipe's number.")] = None,
    rivals: Annotated[
        bool, Option("--rivals", help="Instead of gradients, compare implicit networks of other kinds with as many parameters.")
    ] = False,
    only: Annotated[str, Option(help="Which rivals, separated by commas.")] = ",".join(RIVALS),
    data: Annotated[
        Path | None, Option(exists=True, file_okay=False, help="A local folder instead of the recipe's source.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(file_okay=False, help="Folder for tables and pictures; benchmarks/comparison/<recipe>, or rivals/, if left out."),
    ] = None,
    device: Annotated[str, Option(envvar="JFB_DEVICE", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Train the same network under several gradients, or its rivals, and write one table and one picture."""
    console = Console()
    names = _names("--only", "rival", only, RIVALS) if rivals else _names("--gradients", "gradient", gradients, GRADIENTS)
    changes = {"optimisation.epochs": epochs, "data.source": None if data is None else str(data)}
    chosen = load_recipe(recipe).changed({key: value for key, value in changes.items() if value is not None})
    command = f"python -m training {shlex.join(sys.argv[1:])}"
    folder = out or Path("benchmarks") / ("rivals" if rivals else "comparison") / chosen.name
    if rivals:
        for found in compare_rivals(chosen, names, device=choose_device(device), console=console):
            write_rivals(folder, found, command)  # after each, so that a run that is killed leaves what it has
            outcome = found.outcomes[-1]
            console.print(
                f"{outcome.name}: test accuracy {outcome.test_accuracy:.2%}, {outcome.parameters:,} parameters, "
                f"{outcome.seconds:.0f} s of training, peak memory {outcome.memory / 1e6:.0f} MB",
                soft_wrap=True,
            )
        console.print(f"table and picture: {folder}", soft_wrap=True)
        return
    comparison = run(chosen, names, device=choose_device(device), console=console)
    write_comparison(folder, comparison, command)
    for one in comparison.runs:
        console.print(
            f"{one.gradient}: test accuracy {one.test.accuracy:.2%}, {1000 * one.step_seconds:.1f} ms a step, "
            f"peak memory {one.memory / 1e6:.0f} MB",
            soft_wrap=True,
        )
    console.print(f"tables and pictures: {folder}", soft_wrap=True)


def _names(option: str, kind: str, given: str, known: Collection[str]) -> list[str]:
    """Split names at commas, and refuse unknown ones and repetitions."""
    names = given.split(",")
    for name in names:
        if name not in known:
            raise BadParameter(f"{option}: unknown {kind} {name!r}, expected some of {', '.join(known)}")
    if len(set(names)) != len(names):
        raise BadParameter(f"{option}: expected each once, got {given}")
    return names
