"""Hub: load, save, push and import models as Hugging Face repositories, which hold the same files as a version."""

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import torch

from jfb import Checkpoint, CheckpointError, load
from jfb.checkpoint import ONNX, save
from jfb.store import CARD, CONFIG, CURVES, DISK_FULL, HISTORY, METRICS, SAMPLES, SOLVER, WEIGHTS, new_version, read_config
from training.errors import HubError, ModelError
from training.reports.model_card import write_card

LOADED = (CONFIG, WEIGHTS, SOLVER, "*.onnx")
FILES = (*LOADED, CARD, METRICS, SAMPLES, HISTORY, CURVES, "evaluation.*")
"""Files that are pushed and imported; all others are ignored."""


def from_pretrained(model: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a model from a local folder, or from the Hugging Face hub (or its cache) by its id, ``owner/name``.

    Args:
        revision: branch, tag or commit on the hub.

    Returns:
        Config, and network in evaluation mode. Nothing that was downloaded is executed.

    Raises:
        HubError: for a name that is neither a local folder nor a model that can be downloaded.
        ModelError: for a folder that is not a model.
    """
    try:
        return load(_local(model, revision, LOADED), device)
    except CheckpointError as error:
        raise ModelError(str(error)) from error


def save_pretrained(checkpoint: Checkpoint, folder: Path, *, name: str | None = None) -> None:
    """Write config, weights and a model card into a folder, which is created if it does not exist.

    To serve the model, save it to ``<model store>/<name>/<version>``.

    Args:
        name: of the model, for its card. Default: the name of the folder.

    Raises:
        ModelError: for a network that consists of ONNX graphs; copy its folder instead.
    """
    if checkpoint.config.architecture.name == ONNX:
        raise ModelError("a network of ONNX graphs has no weights to save: copy its folder instead")
    folder.mkdir(parents=True, exist_ok=True)
    save(folder, checkpoint.config, checkpoint.network)
    write_card(folder, name or folder.name)


def push_to_hub(folder: Path, repo_id: str, *, private: bool = False, message: str = "Upload model") -> str:
    """Upload a version's folder to the hub, and create the repository if it does not exist.

    Authenticates with the token of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The URL of the repository.

    Raises:
        ModelError: for a folder that is not a model; nothing is uploaded.
        HubError: if the hub cannot be reached or refuses the request.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # base of the errors of its HTTP client

    try:
        read_config(folder)
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    api = HfApi(library_name="jfb")
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=list(FILES), commit_message=message)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{repo_id}: {_explain(error)}") from error
    return str(address)


def import_from_hub(model: str, store: Path, name: str, *, revision: str | None = None) -> Path:
    """Import a model from the hub, or from a local folder, into the store as the next version of a name.

    Returns:
        The version's folder.

    Raises:
        HubError, ModelError: as ``from_pretrained``; nothing is left in the store.
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


def _explain(error: Exception) -> str:
    """Return the cause of an error of the hub's client: a refused request, an invalid id, a full disk, or no connection."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    host = urlsplit(constants.ENDPOINT).netloc
    match error:
        case HfHubHTTPError():
            return f"{host} refused the request: {error}"
        case HFValidationError():
            return f"not a valid id: {error}"
        case OSError() if error.errno in DISK_FULL:
            return f"what {host} sent could not be written: {error}"
    return f"could not reach {host}: {error}"


def _local(model: str | Path, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Return a local folder as it is, or the downloaded snapshot of a repository."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # base of the errors of its HTTP client

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(patterns), library_name="jfb"))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{model}: not a local folder, and {_explain(error)}") from error
