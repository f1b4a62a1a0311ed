"""``python -m training import hub``"""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from training.interop.hub import import_from_hub


def import_hub(
    model: Annotated[str, Argument(help="owner/name on the Hugging Face hub, or a local folder with the same files.")],
    name: Annotated[str | None, Option(help="Name of the model in the store. Default: the last part of the id.")] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit on the hub.")] = None,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Model store, to which <name>/<version>/ is added.")] = Path(
        "model_store"
    ),
) -> None:
    """Import a model of this project from the Hugging Face hub."""
    folder = import_from_hub(model, store, name or Path(model).resolve().name, revision=revision)
    Console().print(f"imported: {folder}", soft_wrap=True)
