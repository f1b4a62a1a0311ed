"""A run's folder: runs/<recipe>/<number>/, with what is known so far, and what it takes to go on after a crash."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jfb.store import list_versions
from training.errors import TrainingError
from training.history import Epoch, write_history

SNAPSHOT = "snapshot.pt"
PUBLISHED = "published.txt"
"""Says which version in the store the run became."""

Snapshot = dict[str, Any]
"""Tensors, numbers, strings, and lists and dicts of them: read without executing anything."""


class RunFolder:
    """Where a run writes while it goes on.

    ``snapshot.pt`` (the last weights, the best ones, and the rest of the run's state), ``history.csv``, and event files for
    TensorBoard. The folder stays after the run.

    Args:
        path: an existing folder, ``runs/<recipe>/<number>``.
        snapshot_seconds: a snapshot is due when so much time has passed since the last one; there is one after each
            epoch in any case.
    """

    def __init__(self, path: Path, snapshot_seconds: float = 60.0) -> None:
        self.path = path
        self.snapshot_seconds = snapshot_seconds

    def read_snapshot(self) -> Snapshot | None:
        """The run's state when it was last written; none if it never was.

        Raises:
            TrainingError: for a file that torch does not read as plain data.
        """
        path = self.path / SNAPSHOT
        if not path.exists():
            return None
        try:
            snapshot: Snapshot = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise TrainingError(f"{path}: not a readable snapshot: {str(error).splitlines()[0]}") from error
        return snapshot

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Exchange the snapshot as a whole: whenever the process is killed, there is the old one or the new one."""
        incomplete = self.path / f".{SNAPSHOT}.incomplete"
        with incomplete.open("wb") as file:
            torch.save(snapshot, file)
            file.flush()
            os.fsync(file.fileno())
        incomplete.replace(self.path / SNAPSHOT)

    @contextmanager
    def record(self, history: list[Epoch]) -> Iterator["Record"]:
        """Write down epochs as they end. Those after the ones in ``history`` that a killed run wrote are no longer shown."""
        from torch.utils.tensorboard import SummaryWriter  # here, because it takes a second to import

        with SummaryWriter(str(self.path), purge_step=len(history) + 1) as events:
            yield Record(self.path / "history.csv", events)

    def mark_published(self, version: Path) -> None:
        """Say that the run is over, and what became of it."""
        (self.path / PUBLISHED).write_text(f"{version}\n")


class Record:
    """The two places where an epoch is written down."""

    def __init__(self, path: Path, events: Any) -> None:
        self._path = path
        self._events = events

    def add(self, history: list[Epoch]) -> None:
        """Write the last epoch of a history."""
        write_history(self._path, history)
        last = asdict(history[-1])
        step = last.pop("epoch")
        for name, value in last.items():
            if value is not None:
                part, _, what = name.partition("_")
                tag = f"{what}/{part}" if part in ("train", "validation") else name
                self._events.add_scalar(tag, value, step)
        self._events.flush()


def last_run(runs: Path, name: str, snapshot_seconds: float) -> RunFolder | None:
    """The newest run of a recipe's name, if there is something to resume: a snapshot that has not become a version yet."""
    path = runs / name / str(max(list_versions(runs / name), default=0))
    unfinished = (path / SNAPSHOT).exists() and not (path / PUBLISHED).exists()
    return RunFolder(path, snapshot_seconds) if unfinished else None


def new_run(runs: Path, name: str, snapshot_seconds: float) -> RunFolder:
    """A run of the next number.

    Raises:
        TrainingError: if the folder cannot be made.
    """
    while True:
        path = runs / name / str(max(list_versions(runs / name), default=0) + 1)
        try:
            path.mkdir(parents=True)
            return RunFolder(path, snapshot_seconds)
        except FileExistsError:
            if not path.is_dir():  # otherwise another run took the number first
                raise TrainingError(f"--runs: {path} is a file") from None
        except OSError as error:
            raise TrainingError(f"--runs: cannot make {path}: {error.strerror}") from error
