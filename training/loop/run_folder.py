"""Run folder: runs/<recipe>/<number>/, with the history so far and the snapshot to resume from."""

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
from training.loop.history import Epoch, write_history

SNAPSHOT = "snapshot.pt"
PUBLISHED = "published.txt"
"""Names the version in the store that the run became."""

Snapshot = dict[str, Any]
"""Tensors, numbers, strings, and lists and dicts of them; reading it executes nothing."""


class RunFolder:
    """The folder of a run: ``snapshot.pt`` (the whole state of the run), ``history.csv``, and event files for TensorBoard.

    The folder stays after the run.

    Args:
        path: an existing folder, ``runs/<recipe>/<number>``.
        snapshot_seconds: time between snapshots; there is also one after each epoch.
    """

    def __init__(self, path: Path, snapshot_seconds: float = 60.0) -> None:
        self.path = path
        self.snapshot_seconds = snapshot_seconds

    def read_snapshot(self) -> Snapshot | None:
        """Return the last snapshot; None if there is none.

        Raises:
            TrainingError: for a file that is not a readable snapshot.
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
        """Replace the snapshot atomically: a process that is killed leaves the old one or the new one."""
        incomplete = self.path / f".{SNAPSHOT}.incomplete"
        with incomplete.open("wb") as file:
            torch.save(snapshot, file)
            file.flush()
            os.fsync(file.fileno())
        incomplete.replace(self.path / SNAPSHOT)

    @contextmanager
    def record(self, history: list[Epoch]) -> Iterator["Record"]:
        """Record epochs as they end, after those in ``history``; later ones from an interrupted run are discarded."""
        from torch.utils.tensorboard import SummaryWriter  # imported here, because it takes a second

        with SummaryWriter(str(self.path), purge_step=len(history) + 1) as events:
            yield Record(self.path, events)

    def mark_published(self, version: Path) -> None:
        """Record that the run is finished, and the version that it became."""
        (self.path / PUBLISHED).write_text(f"{version}\n")


class Record:
    """The record of a run's epochs: ``history.csv`` and TensorBoard."""

    def __init__(self, folder: Path, events: Any) -> None:
        self._folder = folder
        self._events = events

    def add(self, history: list[Epoch]) -> None:
        """Add the last epoch of a history."""
        write_history(self._folder, history)
        last = asdict(history[-1])
        step = last.pop("epoch")
        for name, value in last.items():
            if value is not None:
                part, _, what = name.partition("_")
                tag = f"{what}/{part}" if part in ("train", "validation") else name
                self._events.add_scalar(tag, value, step)
        self._events.flush()


def last_run(runs: Path, name: str, snapshot_seconds: float) -> RunFolder | None:
    """Return the newest run of a name if it can be resumed: it has a snapshot and was not published."""
    path = runs / name / str(max(list_versions(runs / name), default=0))
    unfinished = (path / SNAPSHOT).exists() and not (path / PUBLISHED).exists()
    return RunFolder(path, snapshot_seconds) if unfinished else None


def new_run(runs: Path, name: str, snapshot_seconds: float) -> RunFolder:
    """Create the folder of a run, with the next number.

    Raises:
        TrainingError: if the folder cannot be created.
    """
    while True:
        path = runs / name / str(max(list_versions(runs / name), default=0) + 1)
        try:
            path.mkdir(parents=True)
            return RunFolder(path, snapshot_seconds)
        except FileExistsError:
            if not path.is_dir():  # otherwise a concurrent run took the number
                raise TrainingError(f"--runs: must be a folder ({path} is a file)") from None
        except OSError as error:
            raise TrainingError(f"--runs: cannot create {path}: {error.strerror}") from error
