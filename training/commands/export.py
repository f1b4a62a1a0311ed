"""``python -m training export``"""

import logging
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from jfb.store import CheckpointError, read_config
from training.errors import ModelError
from training.stored import find_version


def export(
    model: Annotated[str, Argument(help="A name in the store (its highest version), name/version, or a version's folder.")],
    parts: Annotated[
        bool, Option("--parts", help="Also write inject.onnx, step.onnx and readout.onnx, for a host that iterates itself.")
    ] = False,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Where the model is.")] = Path("model_store"),
) -> None:
    """Write model.onnx, the whole adaptive inference in one graph, into the version's folder."""
    from jfb.export import export as run  # here, because the other commands need not wait for ONNX

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of operators of libraries that are not installed
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
    if solver != "picard":
        console.print(
            f"model.onnx iterates plainly: answers within the same tolerance as with {solver}, after other numbers of iterations",
            style="yellow",
            soft_wrap=True,
        )
