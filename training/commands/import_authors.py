"""``python -m training import authors``"""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from training.interop.authors import Family
from training.interop.authors import import_authors as run


def import_authors(
    file: Annotated[Path, Argument(exists=True, dir_okay=False, help="The authors' weights: .safetensors, or their .pth.")],
    family: Annotated[Family, Option(help="Which of the authors' networks the file contains.")],
    name: Annotated[str | None, Option(help="Name of the model. Default: authors_<family>.")] = None,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Model store, to which <name>/<version>/ is added.")] = Path(
        "model_store"
    ),
) -> None:
    """Import weights published by the authors of the JFB paper."""
    folder = run(file, family, store, name or f"authors_{family}")
    Console().print(f"imported: {folder}", soft_wrap=True)
