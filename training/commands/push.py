"""``python -m training push``"""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from jfb import push_to_hub
from training.store import find_version


def push(
    model: Annotated[str, Argument(help="A name in the store (its highest version), name/version, or the folder of a version.")],
    repository: Annotated[str, Argument(help="owner/name on the Hugging Face hub; created if it does not exist.")],
    private: Annotated[bool, Option("--private", help="Create the repository as a private one.")] = False,
    store: Annotated[Path, Option(envvar="JFB_MODEL_STORE", help="Model store.")] = Path("model_store"),
) -> None:
    """Upload a version, with its model card, to the Hugging Face hub; log in with `hf auth login` or HF_TOKEN."""
    address = push_to_hub(find_version(model, store), repository, private=private)
    Console().print(f"pushed: {address}", soft_wrap=True)
