"""Hub: load models from the Hugging Face hub, and push them to it; a repository has the same files as a version."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch

from jfb.checkpoint import Checkpoint, find_folder, load
from jfb.store import CARD, CONFIG, CURVES, DISK_FULL, HISTORY, METRICS, SAMPLES, SOLVER, WEIGHTS, read_config

LOADED = (CONFIG, WEIGHTS, SOLVER, "*.onnx")
FILES = (*LOADED, CARD, METRICS, SAMPLES, HISTORY, CURVES, "evaluation.*")
"""Files that are pushed and imported; all others are ignored."""


class HubError(Exception):
    """The Hugging Face hub could not be reached, or refused the request; or its library is not installed."""


def from_pretrained(model: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a model from a local folder, or from the Hugging Face hub (or its cache) by its id, ``owner/name``.

    Needs ``huggingface_hub``. Nothing that was downloaded is executed.

    Args:
        revision: branch, tag or commit on the hub.

    Raises:
        HubError: for a name that is neither a local folder nor a model that can be downloaded.
        CheckpointError: for a folder that is not a model.
    """
    return load(download(model, revision, LOADED), device)


def push_to_hub(model: str | Path, repo_id: str, *, private: bool = False, message: str = "Upload model") -> str:
    """Upload a version's folder to the Hugging Face hub, and create the repository if it does not exist.

    Needs ``huggingface_hub``. Authenticates with the token of ``hf auth login`` or ``HF_TOKEN``.

    Args:
        model: as for ``load``: a name in the store, ``name/version``, or a folder.
        repo_id: ``owner/name``.

    Returns:
        The URL of the repository.

    Raises:
        CheckpointError: for a folder that is not a model; nothing is uploaded.
        HubError: if the hub cannot be reached or refuses the request.
    """
    folder = find_folder(model)
    read_config(folder)
    _require_library()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # base of the errors of its HTTP client

    api = HfApi(library_name="jfb")
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=list(FILES), commit_message=message)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{repo_id}: {_explain(error)}") from error
    return str(address)


def download(model: str | Path, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return a local folder as it is, or the downloaded snapshot of a repository: the files that match a pattern.

    Raises:
        HubError: as ``from_pretrained``.
    """
    if Path(model).is_dir():
        return Path(model)
    _require_library()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # base of the errors of its HTTP client

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(patterns), library_name="jfb"))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{model}: not a local folder, and {_explain(error)}") from error


def _require_library() -> None:
    if find_spec("huggingface_hub") is None:
        raise HubError("the Hugging Face hub needs the package huggingface_hub: pip install huggingface_hub")


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
