"""``python -m training import authors``"""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from training.authors import Family
from training.authors import import_authors as run


def import_authors(
    file: Annotated[Path, Argument(exists=True, dir_okay=False, help=".safetensors with the authors' names, or their .pth.")],
    family: Annotated[Family, Option(help="Which of their networks it holds; the file does not say.")],
    name: Annotated[str | None, Option(help="Of the model; authors_<family> if left out.")] = None,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Where the model goes, as <name>/<version>/.")] = Path(
        "model_store"
    ),
) -> None:
    """Bring weights that the JFB paper's authors published into the model store."""
    folder = run(file, family, store, name or f"authors_{family}")
    Console().print(f"imported: {folder}", soft_wrap=True)
