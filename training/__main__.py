"""``python -m training``: the command line."""

import errno
import sys
from typing import NoReturn

import torch
import typer
from rich.console import Console
from rich.markup import escape

from jfb import CheckpointError
from jfb.hub import HubError
from jfb.store import DISK_FULL, VersionNotWritten
from training.commands.accelerate import accelerate
from training.commands.compare import compare
from training.commands.evaluate import evaluate
from training.commands.export import export
from training.commands.import_authors import import_authors
from training.commands.import_hub import import_hub
from training.commands.push import push
from training.commands.train import train
from training.errors import TrainingError

app = typer.Typer(
    help="Train implicit networks with Jacobian-free backpropagation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(train)
app.command()(compare)
app.command()(evaluate)
app.command()(accelerate)
app.command()(export)
app.command()(push)

imports = typer.Typer(help="Import models from other places into the model store.", no_args_is_help=True)
app.add_typer(imports, name="import")
imports.command("authors")(import_authors)
imports.command("hub")(import_hub)


def main() -> None:
    """Run the command line; an error that the user can fix is one line and exit status 1."""
    torch.backends.cudnn.allow_tf32 = False  # as in the server: see training.device.tensor_float_32
    try:
        app()
    except (TrainingError, CheckpointError, HubError, VersionNotWritten) as error:
        _exit(str(error))
    except OSError as error:
        if error.errno not in (*DISK_FULL, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _exit(f"a file could not be read or written: {error}")


def _exit(message: str) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(1)


if __name__ == "__main__":
    main()
