"""``python -m training accelerate``"""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from training.acceleration.accelerate import MAX_START_RATIO, Accelerated, accelerate_version
from training.data import load_parts
from training.device import choose_device
from training.evaluation.solver_times import MAX_TIME_RATIO, WITHOUT_START
from training.store import find_version, load_version, recipe_of


def accelerate(
    model: Annotated[str, Argument(help="A name in the store (its highest version), name/version, or the folder of a version.")],
    recipe: Annotated[
        str | None, Option(help="Recipe with the data to fit to, for models that were not trained here: its name or a file.")
    ] = None,
    data: Annotated[
        Path | None, Option(exists=True, file_okay=False, help="Read the data from this folder instead of the recipe's source.")
    ] = None,
    start: Annotated[
        bool, Option("--start", help="Also train a network that guesses the fixed point, where the iteration then starts.")
    ] = False,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Model store.")] = Path("model_store"),
    device: Annotated[str, Option(envvar="JFB_DEVICE", help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Fit a faster solver to a model, without labels, and publish it as the model's next version.

    The weights, and so the fixed points, stay the same. The new solver becomes the default if it takes clearly less time.
    """
    console = Console()
    on = choose_device(device)
    folder = find_version(model, store)
    checkpoint = load_version(folder, on)
    chosen = recipe_of(checkpoint.config, folder, recipe).changed({} if data is None else {"data.source": str(data)})
    parts = load_parts(chosen.data, console)
    new, accelerated, _ = accelerate_version(checkpoint, folder, parts, store, start=start, device=on, console=console)
    console.print(_table(accelerated, checkpoint.config.serving.solver))
    verdict = (
        "mixing is now the default solver"
        if accelerated.pays
        else f"the default solver is still {accelerated.config.serving.solver}, because mixing takes more than "
        f"{MAX_TIME_RATIO:g} of its time, or is not the fastest"
    )
    if accelerated.start_ratio is not None:
        ratio = f"with the learned start inputs take {accelerated.start_ratio:.2f} of their time without it"
        kept = accelerated.config.learned_start is not None
        console.print(ratio if kept else f"{ratio}, so it was left out: it must be at most {MAX_START_RATIO:g}", soft_wrap=True)
    console.print(f"fitted in {accelerated.seconds:.0f} s; {verdict}: {new}", soft_wrap=True)


def _table(accelerated: Accelerated, before: str) -> Table:
    times = accelerated.times
    if before + WITHOUT_START in times.iterations_at:
        before += WITHOUT_START
    table = Table("tolerance", "solver", "mean iterations", "slowest input", "µs per input")
    for place, tolerance in enumerate(times.tolerances):
        for name in times.iterations_at:
            table.add_row(
                f"{tolerance:g}",
                f"{name} (default before)" if name == before else name,
                f"{times.iterations_at[name][place]:.1f}",
                str(times.max_iterations_at[name][place]),
                f"{times.microseconds_at[name][place]:.0f}",
            )
    return table
