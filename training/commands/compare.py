"""``python -m training compare``"""

import shlex
import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import BadParameter, Option

from jfb.gradients import GRADIENTS
from training.commands.train import choose_device
from training.comparison import compare as run
from training.comparison_report import write_comparison
from training.recipe import load_recipe, shipped_recipes


def compare(
    recipe: Annotated[str, Option(help=f"A shipped recipe ({', '.join(shipped_recipes())}), or the path of a .yaml file.")],
    gradients: Annotated[str, Option(help="Separated by commas.")] = ",".join(GRADIENTS),
    epochs: Annotated[int | None, Option(help="Instead of the recipe's number.")] = None,
    data: Annotated[
        Path | None, Option(exists=True, file_okay=False, help="A local folder instead of the recipe's source.")
    ] = None,
    out: Annotated[
        Path | None, Option(file_okay=False, help="Folder for tables and pictures; benchmarks/comparison/<recipe> if left out.")
    ] = None,
    device: Annotated[str, Option(envvar="JFB_DEVICE", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Train the same network under several gradients and write one table and one picture."""
    console = Console()
    names = gradients.split(",")
    for name in names:
        if name not in GRADIENTS:
            raise BadParameter(f"--gradients: unknown gradient {name!r}, expected some of {', '.join(GRADIENTS)}")
    if len(set(names)) != len(names):
        raise BadParameter(f"--gradients: expected each once, got {gradients}")
    changes = {"optimisation.epochs": epochs, "data.source": None if data is None else str(data)}
    chosen = load_recipe(recipe).changed({key: value for key, value in changes.items() if value is not None})
    comparison = run(chosen, names, device=choose_device(device), console=console)
    folder = out or Path("benchmarks") / "comparison" / chosen.name
    write_comparison(folder, comparison, f"python -m training {shlex.join(sys.argv[1:])}")
    for one in comparison.runs:
        console.print(
            f"{one.gradient}: test accuracy {one.test.accuracy:.2%}, {1000 * one.step_seconds:.1f} ms a step, "
            f"peak memory {one.memory / 1e6:.0f} MB",
            soft_wrap=True,
        )
    console.print(f"tables and pictures: {folder}", soft_wrap=True)
