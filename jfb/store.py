"""The model store: model_store/<name>/<version>/, and how a new version becomes visible."""

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType


def list_versions(model: Path) -> list[int]:
    """The versions in a model's folder, ascending. Folders whose names are not positive integers are not versions."""
    if not model.is_dir():
        return []
    return sorted(
        int(path.name) for path in model.iterdir() if path.name.isdecimal() and path.name == str(int(path.name)) and path.is_dir()
    )


def list_models(store: Path) -> dict[str, list[int]]:
    """The models in a store that have a version, each with its versions, in alphabetical order."""
    if not store.is_dir():
        return {}
    folders = [path for path in sorted(store.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    found = {path.name: list_versions(path) for path in folders}
    return {name: numbers for name, numbers in found.items() if numbers}


class NewVersion:
    """A version while it is written; see ``new_version``."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._hidden: Path | None = None
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The version's folder, ``store/<name>/<version>``, once the block has ended; the number is drawn only then.

        Raises:
            RuntimeError: before that, and after a block that raised.
        """
        if self._folder is None:
            raise RuntimeError(f"no version of {self._model} was finished")
        return self._folder

    def __enter__(self) -> Path:
        self._model.mkdir(parents=True, exist_ok=True)
        self._hidden = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=self._model))
        return self._hidden

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._hidden is not None
        try:
            if kind is None:
                self._folder = self._publish(self._hidden)
        finally:
            shutil.rmtree(self._hidden, ignore_errors=True)

    def _publish(self, hidden: Path) -> Path:
        for path in (*hidden.rglob("*"), hidden):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors and mkdtemp let the owner alone read
            _sync(path)
        while True:
            target = self._model / str(max(list_versions(self._model), default=0) + 1)
            try:
                hidden.rename(target)
                break
            except OSError:
                if not target.exists():  # otherwise another training run took the number first
                    raise
        _sync(self._model)
        return target


def new_version(store: Path, name: str) -> NewVersion:
    """Fill a hidden folder, then rename it to the next version: a half-written version is never visible.

    A context manager whose ``with`` gives the hidden folder. If the block raises, the folder is removed and the store is as it
    was. The folder's files are on disk before its name is. Which version it became, the manager's ``folder`` says
    afterwards: the highest one may by then be another run's.
    """
    return NewVersion(store / name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
