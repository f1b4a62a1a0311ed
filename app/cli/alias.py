"""``python -m app alias``: name a version of a model, such as ``stable``, move the name to another one, or remove it."""

from pathlib import Path
from typing import Annotated

import typer

from jfb.config import must_be_one_of
from jfb.store import CheckpointError, ModelVersion, list_models, remove_alias, set_alias

program = typer.Typer(add_completion=False)


@program.command()
def alias(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    alias: Annotated[str, typer.Argument(help="Alias, such as stable.")],
    version: Annotated[int | None, typer.Argument(help="Number of the version.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    model_store: Annotated[Path, typer.Option(envvar="JFB_MODEL_STORE", help="Folder of the models.")] = Path("model_store"),
) -> None:
    """Give an alias to a version, move it there, or remove it: /models/MODEL/versions/ALIAS/predict uses that version.

    A running server sees it when it next scans the model store.
    """
    if model not in (known := list_models(model_store)):
        raise typer.BadParameter(f"{must_be_one_of(known, model)} in {model_store}", param_hint="'model'")
    if (version is None) != remove:
        problem = f"must be left out with --remove (got {version})" if remove else "must be given, or --remove"
        raise typer.BadParameter(problem, param_hint="'version'")
    try:
        if version is None:
            typer.echo(f"{model}: {alias} is removed (before: {remove_alias(model_store / model, alias)})")
            return
        before = set_alias(model_store, alias, ModelVersion(model, version))
    except (ValueError, CheckpointError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{model}: {alias} is version {version}{'' if before in (None, version) else f' (before: {before})'}")
