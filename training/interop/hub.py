"""Hub: save models as Hugging Face repositories with a card, and import repositories into the model store."""

import shutil
from pathlib import Path

from jfb import Checkpoint, load
from jfb.checkpoint import save
from jfb.hub import FILES, download
from jfb.store import new_version
from training.reports.model_card import write_card


def save_pretrained(checkpoint: Checkpoint, folder: Path, *, name: str | None = None) -> None:
    """Write config, weights and a model card into a folder, which is created if it does not exist.

    To serve the model, save it to ``<model store>/<name>/<version>``.

    Args:
        name: of the model, for its card. Default: the name of the folder.

    Raises:
        CheckpointError: as ``jfb.save``, among others for a network that consists of ONNX graphs; copy its folder instead.
    """
    save(folder, checkpoint.config, checkpoint.network, checkpoint.mixing)
    write_card(folder, name or folder.name)


def import_from_hub(model: str, store: Path, name: str, *, revision: str | None = None) -> Path:
    """Import a model from the hub, or from a local folder, into the store as the next version of a name.

    Returns:
        The version's folder.

    Raises:
        HubError, CheckpointError: as ``jfb.from_pretrained``; nothing is left in the store.
    """
    source = download(model, revision, FILES)
    load(source)
    new = new_version(store, name)
    with new as folder:
        for pattern in FILES:
            for path in source.glob(pattern):
                shutil.copyfile(path, folder / path.name)
    return new.folder
