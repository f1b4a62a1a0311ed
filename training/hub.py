"""Hub: models load and save in the Hugging Face way; a version's folder and a repository on the hub hold the same files."""

import shutil
from pathlib import Path

import torch

from jfb import Checkpoint, CheckpointError, load
from jfb.checkpoint import ONNX, save
from jfb.store import CONFIG, WEIGHTS, new_version, read_config
from training.card import CARD, write_card
from training.errors import HubError, ModelError

NEEDED = (CONFIG, WEIGHTS, "*.onnx")
FILES = (*NEEDED, CARD, "metrics.json", "samples.json", "history.csv", "curves.png", "evaluation.*")
"""What a repository gives and takes; anything else in it, or in a version's folder, is left where it is."""


def from_pretrained(model: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a model from a local folder, or from the Hugging Face hub (or its cache) by its id, ``owner/name``.

    Args:
        revision: branch, tag or commit on the hub.

    Returns:
        The config, and the network in evaluation mode. Nothing that was downloaded is executed.

    Raises:
        HubError: if there is no such folder and the hub does not give it.
        ModelError: for a folder that is not a model.
    """
    try:
        return load(_local(model, revision, NEEDED), device)
    except CheckpointError as error:
        raise ModelError(str(error)) from error


def save_pretrained(checkpoint: Checkpoint, folder: Path, *, name: str | None = None) -> None:
    """Write config, weights and a model card into a folder, made if it is not there.

    A server serves it if it is ``<model store>/<name>/<version>``.

    Args:
        name: of the model, in its card; the folder's if left out.

    Raises:
        ModelError: for a network that is ONNX graphs, whose folder is copied instead.
    """
    if checkpoint.config.architecture.name == ONNX:
        raise ModelError("a network that is ONNX graphs has no weights to save: copy its folder")
    folder.mkdir(parents=True, exist_ok=True)
    save(folder, checkpoint.config, checkpoint.network)
    write_card(folder, name or folder.name)


def push_to_hub(folder: Path, repo_id: str, *, private: bool = False, message: str = "Upload model") -> str:
    """Upload a version's folder to the hub, as whom ``hf auth login`` or ``HF_TOKEN`` says; make the repository if need be.

    Returns:
        The repository's address.

    Raises:
        ModelError: for a folder that is not a model; nothing is uploaded.
        HubError: for what the hub refuses, or when it is not reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the base of whatever its HTTP client raises

    try:
        read_config(folder)
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    api = HfApi(library_name="jfb")
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=list(FILES), commit_message=message)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{repo_id}: the hub did not take it: {error}") from error
    return str(address)


def import_from_hub(model: str, store: Path, name: str, *, revision: str | None = None) -> Path:
    """Bring a model from the hub, or from a local folder, into the store as the next version of a name.

    Returns:
        The version's folder.

    Raises:
        HubError, ModelError: as ``from_pretrained`` does; nothing is left in the store.
    """
    source = _local(model, revision, FILES)
    try:
        load(source)
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    new = new_version(store, name)
    with new as folder:
        for pattern in FILES:
            for path in source.glob(pattern):
                shutil.copyfile(path, folder / path.name)
    return new.folder


def _local(model: str | Path, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """A local folder as it is; the snapshot of a repository."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the base of whatever its HTTP client raises

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(patterns), library_name="jfb"))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{model}: neither a local folder nor a model that the hub gives: {error}") from error
