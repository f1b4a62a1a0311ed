"""The model store: ``<store>/<name>/<version>/``, how a version becomes visible, and the formats of the files in it.

Nothing here needs torch, so that a program can look into a store without the time and memory that torch takes.
"""

import csv
import errno
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from jfb.config import FORMAT_VERSION, ModelConfig, must_be_one_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SOLVER = "solver.safetensors"
"""The coefficients of a learned solver, in the versions that have one."""
METRICS = "metrics.json"
SAMPLES = "samples.json"
HISTORY = "history.csv"
CURVES = "curves.png"
EVALUATION = "evaluation.json"
EVALUATION_TABLE = "evaluation.csv"
EVALUATION_PLOT = "evaluation.png"
DIFFICULTY_TABLE = "difficulty.csv"
DIFFICULTY_PLOT = "difficulty.png"
CARD = "README.md"
ALIASES = "aliases.json"
"""In the folder of a model, next to its versions."""

MAX_VERSION = 2**31 - 1
MAX_JSON_BYTES = 2**20
"""Of ``config.json``, ``metrics.json`` and ``evaluation.json``, which servers keep in memory or send to clients."""
MAX_SAMPLES_BYTES = 2**26
"""Of ``samples.json``."""
MAX_ALIASES = 100
"""Of one model."""
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""``errno`` of an ``OSError``: there is no space, or this user or file may have no more."""
MODEL_NAME = "1 to 128 letters, digits, '.', '_' or '-', and must not start with '.'"
"""What the name of a model may have; anything else in a store is no model."""
ALIAS = "a letter and up to 127 letters, digits, '.', '_' or '-', and must not look like a version, such as v3"
"""What an alias may be."""


class CheckpointError(Exception):
    """A model folder that cannot be used; the message names the file, says what it must be, and what was found."""


class VersionNotWritten(Exception):  # noqa: N818 - named for the condition
    """The disk is full, or the store cannot be written; nothing of the version is visible."""


@dataclass(frozen=True, order=True)
class ModelVersion:
    """One version of a model, written ``name/number``."""

    name: str
    number: int
    """At least 1; a request or command that names no version means the highest."""

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name/number``.

        Raises:
            ValueError: for any other text.
        """
        name, _, number = text.rpartition("/")
        if not is_model_name(name) or not _is_version_number(number):
            raise ValueError(f"model version: must be NAME/NUMBER (got {text!r})")
        return cls(name, int(number))

    def folder(self, store: Path) -> Path:
        """The version's folder in a store, whether it exists or not."""
        return store / self.name / str(self.number)


def is_model_name(text: str) -> bool:
    """Whether a model may have this name: see ``MODEL_NAME``."""
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", text) is not None


def is_alias(text: str) -> bool:
    """Whether a version may be called so: see ``ALIAS``."""
    return re.fullmatch(r"(?![vV][0-9.]*$)[A-Za-z][A-Za-z0-9._-]{0,127}", text) is not None


def list_versions(model: Path) -> list[int]:
    """The versions in a model's folder, ascending: folders with a name from 1 to ``MAX_VERSION``. Empty if it is no model."""
    if not is_model_name(model.name):
        return []
    return sorted(int(name) for name in _folders(model) if _is_version_number(name))


def list_models(store: Path) -> dict[str, list[int]]:
    """The models in a store that have a version, each with its versions, in alphabetical order."""
    found = {name: list_versions(store / name) for name in _folders(store)}
    return {name: numbers for name, numbers in found.items() if numbers}


def publication_time(folder: Path) -> float:
    """When a version was written, in seconds since the epoch: the time of its oldest file, as later commands only add newer ones.

    Raises:
        CheckpointError: if a file in it cannot be looked at.
    """
    try:
        return min((path.stat().st_mtime for path in folder.iterdir() if not path.name.startswith(".")), default=0.0)
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror or error}") from error


def _folders(parent: Path) -> list[str]:
    """The names of the folders in a folder, in alphabetical order; those that cannot be looked at are left out."""
    try:
        with os.scandir(parent) as entries:
            return sorted(entry.name for entry in entries if _is_folder(entry))
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link that leads back to itself
        return False


class NewVersion:
    """A version while it is written; see ``new_version``."""

    def __init__(self, store: Path, name: str) -> None:
        self._store = store
        self._name = name
        self._hidden: Path | None = None
        self._version: ModelVersion | None = None

    @property
    def version(self) -> ModelVersion:
        """The version that was written, once the block has ended: its number is chosen only then.

        Raises:
            RuntimeError: before that, and after a block that raised.
        """
        if self._version is None:
            raise RuntimeError(f"no version of {self._name} was finished")
        return self._version

    @property
    def folder(self) -> Path:
        """The folder of ``version``."""
        return self.version.folder(self._store)

    def check(self) -> None:
        """Find out before a long run whether the store can be written.

        Raises:
            VersionNotWritten: if it cannot.
        """
        self.__enter__().rmdir()

    def __enter__(self) -> Path:
        model = self._store / self._name
        try:
            model.mkdir(parents=True, exist_ok=True)
            self._hidden = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=model))
        except OSError as error:
            raise self._not_written(error) from error
        return self._hidden

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._hidden is not None
        try:
            if kind is None:
                self._version = self._publish(self._hidden)
        except OSError as unpublished:
            raise self._not_written(unpublished) from unpublished
        finally:
            shutil.rmtree(self._hidden, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> VersionNotWritten:
        reason = f"{error.strerror or error}"
        return VersionNotWritten(f"{self._store / self._name}: no version was written, and the store is as it was: {reason}")

    def _publish(self, hidden: Path) -> ModelVersion:
        for path in (*hidden.rglob("*"), hidden):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors and mkdtemp give read permission to the owner only
            _sync(path)
        model = self._store / self._name
        while True:
            version = ModelVersion(self._name, max(list_versions(model), default=0) + 1)
            try:
                hidden.rename(version.folder(self._store))
                break
            except OSError:
                if not version.folder(self._store).exists():  # otherwise another writer took the number first
                    raise
        _sync(model)
        return version


def new_version(store: Path, name: str) -> NewVersion:
    """Write the next version of a model; it becomes visible as a whole, or not at all.

    A context manager whose ``with`` gives a hidden folder to fill, which is renamed to the next version when the block ends. If
    the block raises, the folder is removed and the store is as it was. The files are on disk before the version's name is.
    The manager's ``version`` and ``folder`` then say which version it became.

    Raises:
        ValueError: for a name that a model cannot have.
        VersionNotWritten: from the ``with``, if the disk is full or the store cannot be written.
    """
    if not is_model_name(name):
        raise ValueError(f"model name: must be {MODEL_NAME} (got {name[:200]!r})")
    return NewVersion(store, name)


def read_config(folder: Path) -> ModelConfig:
    """Read and validate ``config.json``.

    Raises:
        CheckpointError: if it is missing, not JSON, of an unknown format version, or has an invalid field.
    """
    path = folder / CONFIG
    content = _parse_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version: must be {FORMAT_VERSION} (got {version!r})")
    try:
        return ModelConfig.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_problems(error, 'config')}") from error


def write_config(folder: Path, config: ModelConfig) -> None:
    """Write ``config.json``, replacing an earlier one as a whole."""
    _write_text(folder / CONFIG, config.model_dump_json(indent=2) + "\n")


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Read ``metrics.json``: what training measured, by name; None if there is no such file.

    Raises:
        CheckpointError: if it is not a JSON object.
    """
    return _read_object(folder / METRICS)


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write ``metrics.json``. Shares are written as shares, not percentages."""
    _write_object(folder / METRICS, metrics)


_ALIASES = TypeAdapter(dict[str, Annotated[int, Field(strict=True, ge=1, le=MAX_VERSION)]])


def read_aliases(model: Path) -> dict[str, int]:
    """Read ``aliases.json`` in the folder of a model: numbers of versions by their aliases; empty if there is no such file.

    Raises:
        CheckpointError: if it is not a JSON object of at most ``MAX_ALIASES`` such names and numbers.
    """
    path = model / ALIASES
    if not os.path.lexists(path):
        return {}
    try:
        aliases = _ALIASES.validate_python(_parse_json(path))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_problems(error, 'aliases')}") from error
    if len(aliases) > MAX_ALIASES:
        raise CheckpointError(f"{path}: must have at most {MAX_ALIASES} aliases (got {len(aliases)})")
    for alias in aliases:
        if not is_alias(alias):
            raise CheckpointError(f"{path}: alias: must be {ALIAS} (got {alias[:200]!r})")
    return aliases


def set_alias(store: Path, alias: str, version: ModelVersion) -> int | None:
    """Give an alias to a version of a model, or move it there from another one, whose number is returned.

    Readers see the old aliases or the new ones, never half of them.

    Raises:
        ValueError: for an alias that is none, a version that is not in the store, or more than ``MAX_ALIASES``.
        CheckpointError: if the ``aliases.json`` that is there cannot be read.
    """
    if not is_alias(alias):
        raise ValueError(f"alias: must be {ALIAS} (got {alias[:200]!r})")
    model = store / version.name
    if version.number not in (numbers := list_versions(model)):
        raise ValueError(f"version: must be one of {', '.join(map(str, numbers)) or 'none'} in {model} (got {version.number})")
    aliases = read_aliases(model)
    before = aliases.get(alias)
    aliases[alias] = version.number
    if len(aliases) > MAX_ALIASES:
        raise ValueError(f"alias: must be one of at most {MAX_ALIASES} of {version.name} (got one more, {alias!r})")
    _write_object(model / ALIASES, dict(sorted(aliases.items())))
    return before


def remove_alias(model: Path, alias: str) -> int:
    """Remove an alias from the folder of a model, and return the number of its version.

    Raises:
        ValueError: if the model has no such alias.
        CheckpointError: if ``aliases.json`` cannot be read.
    """
    aliases = read_aliases(model)
    if alias not in aliases:
        raise ValueError(f"alias: {must_be_one_of(aliases, alias[:200])}")
    number = aliases.pop(alias)
    _write_object(model / ALIASES, aliases)
    return number


@dataclass(frozen=True)
class Sample:
    """An input to try a model with."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)  # for the server's description
    input: list[Any]
    """Raw values as clients send them: nested lists of the model's input shape."""
    label: str
    """The correct class."""


_SAMPLES = TypeAdapter(list[Sample])


def read_samples(folder: Path) -> list[Sample]:
    """Read ``samples.json``; empty if there is no such file. The inputs' shapes are not checked.

    Raises:
        CheckpointError: if it is not a JSON list of samples.
    """
    path = folder / SAMPLES
    if not os.path.lexists(path):
        return []
    try:
        return _SAMPLES.validate_python(_parse_json(path, MAX_SAMPLES_BYTES))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_problems(error, 'samples')}") from error


def write_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """Write ``samples.json``."""
    _write_text(folder / SAMPLES, json.dumps([asdict(sample) for sample in samples], separators=(",", ":")) + "\n")


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """Read ``evaluation.json``, which ``python -m training evaluate`` writes; None if there is no such file.

    Raises:
        CheckpointError: if it is not a JSON object.
    """
    return _read_object(folder / EVALUATION)


def write_evaluation(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Write ``evaluation.json``."""
    _write_object(folder / EVALUATION, evaluation)


def write_table(path: Path, kind: "type[DataclassInstance]", rows: "Sequence[DataclassInstance]") -> None:
    """Write a CSV file, such as ``history.csv``: a column for each field of a dataclass, a line for each row.

    A row may be an instance of another class that has some of the fields; the others are empty.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    _write_text(path, text.getvalue())


def _is_version_number(text: str) -> bool:
    return re.fullmatch("[1-9][0-9]{0,9}", text) is not None and int(text) <= MAX_VERSION


def _read_object(path: Path) -> dict[str, Any] | None:
    if not os.path.lexists(path):
        return None
    content = _parse_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must be a JSON object (got {type(content).__name__})")
    return content


def _write_object(path: Path, content: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(dict(content), indent=2) + "\n")


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read a file that another program may be writing to or have put there to do harm: a copy, without blocking on a pipe.

    Raises:
        CheckpointError: if it is missing, not a regular file, empty, or larger than ``max_bytes``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{path}: must be a regular file")
            if not 0 < found.st_size <= max_bytes:
                raise CheckpointError(f"{path}: must have 1 to {max_bytes:,} bytes (got {found.st_size:,})")
            return file.read(max_bytes)
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: must be a regular file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def _parse_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    try:
        return from_json(read_file(path, max_bytes))  # which limits nesting, and takes no unpaired surrogates
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error


def _problems(error: ValidationError, whole: str) -> str:
    problems = []
    for problem in error.errors():
        where = ".".join(map(str, problem["loc"]))
        if problem["type"] == "value_error":  # one of ours, which names the field
            problems.append(f"{where}.{problem['ctx']['error']}" if where else str(problem["ctx"]["error"]))
        else:
            problems.append(f"{where or whole}: {problem['msg']}")
    return "; ".join(problems)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Write a file of a visible version: the block fills one with a hidden name, which takes the place of the old one at its end.

    A reader sees the old content or the new one. If the block raises, for example because the disk is full, the old one stays.
    """
    incomplete = path.with_name(f".{path.name}.incomplete")
    try:
        yield incomplete
        incomplete.replace(path)
    finally:
        incomplete.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    with replaced_file(path) as incomplete:
        incomplete.write_text(text)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
