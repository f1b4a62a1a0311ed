"""``python -m training export``"""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from jfb.store import CheckpointError, read_config
from training.errors import ModelError
from training.store import find_version


def export(
    model: Annotated[str, Argument(help="A name in the store (its highest version), name/version, or the folder of a version.")],
    parts: Annotated[
        bool, Option("--parts", help="Also write inject.onnx, step.onnx and readout.onnx, for programs that iterate themselves.")
    ] = False,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Model store.")] = Path("model_store"),
) -> None:
    """Write model.onnx, the whole adaptive inference in one graph, into the version's folder."""
    from jfb.export import export as run  # imported here, because the other commands do not need ONNX

    console = Console()
    folder = find_version(model, store)
    try:
        solver = read_config(folder).serving.solver
        with console.status("tracing the network"):
            written = run(folder, parts=parts)
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    for path in written:
        console.print(f"{path}: {path.stat().st_size / 1024:,.0f} KiB", soft_wrap=True, highlight=False)
    if solver not in ("picard", "mixing"):
        console.print(
            f"model.onnx uses Picard iteration: it reaches the same tolerance as {solver}, in a different number of iterations",
            style="yellow",
            soft_wrap=True,
        )
