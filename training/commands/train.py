"""``python -m training train``"""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from jfb.gradients import GRADIENTS
from jfb.store import new_version
from training.acceleration.accelerate import accelerate_network
from training.data import load_data
from training.device import choose_device, process_device
from training.errors import ModelError
from training.evaluation.evaluate import evaluate
from training.loop.network import check_before_data
from training.loop.processes import joined_processes
from training.loop.run_folder import last_run, new_run
from training.loop.train import train as run
from training.recipe import load_recipe, shipped_recipes
from training.reports.curves import draw_curves
from training.reports.evaluation_report import write_evaluation_report
from training.reports.model_card import write_card
from training.store import model_config, with_serving, write_trained


def train(
    recipe: Annotated[str, Argument(help=f"A shipped recipe ({', '.join(shipped_recipes())}), or the path of a .yaml file.")],
    data: Annotated[
        Path | None,
        Option(
            exists=True,
            file_okay=False,
            help="Read the data from this folder instead: parquet files, or images in one subfolder per class.",
        ),
    ] = None,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Model store, to which <name>/<version>/ is added.")] = Path(
        "model_store"
    ),
    gradient: Annotated[
        str | None,
        Option(help=f"Use this gradient ({', '.join(GRADIENTS)}), with its default options, instead of the recipe's."),
    ] = None,
    epochs: Annotated[int | None, Option(help="Train for this many epochs instead of the recipe's.")] = None,
    seed: Annotated[int | None, Option(help="Use this seed instead of the recipe's.")] = None,
    device: Annotated[str, Option(envvar="JFB_DEVICE", help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
    runs: Annotated[
        Path,
        Option(envvar="JFB_RUNS", help="Folder of runs, <name>/<number>/, with the files that --resume and TensorBoard read."),
    ] = Path("runs"),
    resume: Annotated[
        bool, Option("--resume", help="Resume the newest run of this recipe from its last snapshot, if it was interrupted.")
    ] = False,
    snapshot_minutes: Annotated[
        float, Option(min=0.0, help="Minutes between snapshots for --resume; there is also one after each epoch.")
    ] = 1.0,
) -> None:
    """Train a classifier and publish it in the model store.

    For data-parallel training: torchrun --nproc-per-node 2 -m training train RECIPE
    """
    on = process_device(choose_device(device))
    changes: dict[str, object] = {
        "data.source": None if data is None else str(data),
        "gradient": None if gradient is None else {"name": gradient},
        "optimisation.epochs": epochs,
        "optimisation.seed": seed,
    }
    chosen = load_recipe(recipe).changed({key: value for key, value in changes.items() if value is not None})
    check_before_data(chosen)
    new = new_version(store, chosen.name)
    new.check()
    with joined_processes(on) as processes:
        console = Console(quiet=not processes.first)
        parts = load_data(chosen, console)
        console.print(
            f"[bold]{chosen.name}[/bold]: {len(parts.train.labels):,} training, {len(parts.validation.labels):,} validation and "
            f"{len(parts.test.labels):,} test {'images' if parts.input.kind == 'image' else 'inputs'}\n"
            f"{len(parts.classes)} classes; gradient {chosen.gradient.name}",
            soft_wrap=True,
        )
        folder = last_run(runs, chosen.name, 60 * snapshot_minutes) if resume else None
        processes.wait_for_all()  # every process must have checked this before the first one writes
        if resume and folder is None:
            console.print(f"nothing to resume in {runs / chosen.name}: starting a new run", soft_wrap=True)
        if folder is None and processes.first:
            folder = new_run(runs, chosen.name, 60 * snapshot_minutes)
        trained = run(chosen, parts, device=on, console=console, folder=folder, processes=processes)
    if folder is None or not processes.first:
        return

    config, mixing, times = model_config(trained, parts), None, None
    if chosen.serving.accelerate:
        try:
            accelerated = accelerate_network(trained.network, config, parts, device=on, console=console)
            config, mixing, times = accelerated.config, accelerated.mixing, accelerated.times
        except ModelError as error:
            console.print(f"not accelerated: {error}", style="yellow", soft_wrap=True)
    evaluation = evaluate(trained.network, config, parts, mixing=mixing, solver_times=times, device=on, console=console)
    config = with_serving(config, label_calibration=evaluation.label_stops.calibration)
    with new as version:  # a hidden folder, which becomes the version when all files are written
        write_trained(version, config, trained, parts, mixing)
        draw_curves(version, chosen.name, trained.history)
        write_evaluation_report(version, chosen.name, evaluation)
        write_card(version, chosen.name)
        if chosen.serving.export:
            from jfb.export import export  # imported here, because it takes seconds

            with console.status("writing the ONNX graphs"):
                export(version, parts=True)
    folder.mark_published(new.folder)
    served = evaluation.with_defaults
    console.print(
        f"test accuracy [bold]{served.accuracy:.2%}[/bold] at {served.iterations:.1f} iterations of {config.serving.solver}, "
        f"{trained.seconds:.0f} s of training: {new.folder}",
        soft_wrap=True,
    )
    console.print(_next_steps(chosen.name, store), soft_wrap=True, highlight=False)


def _next_steps(name: str, store: Path) -> str:
    """Three commands that work as they stand: of ``jfb`` where the shell finds the one of this Python, else of this Python."""
    if shutil.which("jfb") == str(Path(sys.executable).with_name("jfb")):
        serve, predict, evaluate = "jfb serve", "jfb predict", "jfb evaluate"
    else:
        python = shlex.quote(os.path.relpath(sys.executable))
        serve, predict, evaluate = f"{python} -m app", f"{python} -m app predict", f"{python} -m training evaluate"
    where = "" if store == Path("model_store") else shlex.quote(str(store))
    return f"""
{serve}{where and f" --model-store {where}"}
{predict} --model {name}   # in another terminal
{evaluate} {name}{where and f" --store {where}"}"""
