"""``python -m training train``"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console
from typer import Argument, Option

from jfb.gradients import GRADIENTS
from training.data import load_data
from training.errors import TrainingError
from training.processes import joined_processes, own_device
from training.publish import publish
from training.recipe import load_recipe, shipped_recipes
from training.run_folder import last_run, new_run
from training.train import train as run

GradientName = StrEnum("GradientName", list(GRADIENTS))  # type: ignore[misc]


def train(
    recipe: Annotated[str, Argument(help=f"A shipped recipe ({', '.join(shipped_recipes())}), or the path of a .yaml file.")],
    data: Annotated[
        Path | None,
        Option(
            exists=True,
            file_okay=False,
            help="A local folder instead of the recipe's source: of parquet files, or of images with one subfolder a class.",
        ),
    ] = None,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Where the model goes, as <name>/<version>/.")] = Path(
        "model_store"
    ),
    gradient: Annotated[GradientName | None, Option(help="Instead of the recipe's gradient, with its default options.")] = None,
    epochs: Annotated[int | None, Option(help="Instead of the recipe's number.")] = None,
    seed: Annotated[int | None, Option(help="Instead of the recipe's seed.")] = None,
    device: Annotated[str, Option(envvar="JFB_DEVICE", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")] = "auto",
    runs: Annotated[
        Path,
        Option(
            envvar="JFB_RUNS", help="Where runs write while they go on, as <name>/<number>/: what --resume and TensorBoard read."
        ),
    ] = Path("runs"),
    resume: Annotated[
        bool, Option("--resume", help="Go on with the newest run of this recipe where it was when it was killed, if it was.")
    ] = False,
    snapshot_minutes: Annotated[
        float, Option(min=0.0, help="Write what --resume needs so often, besides after each epoch.")
    ] = 1.0,
) -> None:
    """Train a classifier and put it into the model store.

    Several processes learn from every batch together: torchrun --nproc-per-node 2 -m training train RECIPE
    """
    on = own_device(choose_device(device))
    changes: dict[str, object] = {
        "data.source": None if data is None else str(data),
        "gradient": None if gradient is None else {"name": gradient.value},
        "optimisation.epochs": epochs,
        "optimisation.seed": seed,
    }
    chosen = load_recipe(recipe).changed({key: value for key, value in changes.items() if value is not None})
    with joined_processes(on) as processes:
        console = Console(quiet=not processes.first)
        parts = load_data(chosen.data, console)
        console.print(
            f"[bold]{chosen.name}[/bold]: {len(parts.train.labels):,} inputs to train with, {len(parts.validation.labels):,} to "
            f"watch by, {len(parts.test.labels):,} to test with; {len(parts.classes)} classes; gradient {chosen.gradient.name}",
            soft_wrap=True,
        )
        folder = last_run(runs, chosen.name, 60 * snapshot_minutes) if resume else None
        processes.wait_for_all()  # before the first one writes, all have seen the same folder
        if resume and folder is None:
            console.print(f"nothing to resume in {runs / chosen.name}: a new run", soft_wrap=True)
        if folder is None and processes.first:
            folder = new_run(runs, chosen.name, 60 * snapshot_minutes)
        trained = run(chosen, parts, device=on, console=console, folder=folder, processes=processes)
    if folder is None or not processes.first:
        return
    version = publish(trained, parts, store, console)
    folder.mark_published(version)
    console.print(
        f"test accuracy [bold]{trained.test.accuracy:.2%}[/bold] at {trained.test.iterations:.1f} iterations, "
        f"{trained.seconds:.0f} s of training: {version}",
        soft_wrap=True,
    )


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is CUDA where there is one.

    Raises:
        TrainingError: for a name that torch does not know, and a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"--device {name}: {error}") from error
    return device
