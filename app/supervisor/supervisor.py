"""Supervisor: keeps the engine processes and the HTTP workers of a server running."""

import asyncio
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Self

import structlog

from app.settings import Settings
from app.supervisor.process import Command, SupervisedProcess

SHUTDOWN_SECONDS = 10  # how long requests in flight may take to finish once a worker has stopped accepting new ones
EXTRA_SECONDS = 5.0  # how much longer a worker may take to exit than its requests

PREFIX = "jfb-server-"
"""Of the names of run folders."""
MIN_FREE_BYTES = 2**20

log = structlog.get_logger(__name__)


class RunFolderError(Exception):
    """The folder for temporary files cannot be used."""


class RunFolder:
    """A folder that only this user can enter: where a server's engines listen, and how they are; all that HTTP workers need."""

    def __init__(self, path: Path, engines: int) -> None:
        self.path = path
        self.sockets = [path / f"engine-{number}.sock" for number in range(engines)]
        self.status_files = [path / f"engine-{number}.json" for number in range(engines)]
        self.metrics = path / "metrics"
        """Of prometheus_client, which adds up there what the HTTP workers count."""

    def create(self) -> None:
        """Make the folder, and keep it locked until this process ends; ``RunFolderError`` if that is impossible."""
        new = self.path.with_suffix(".new")  # gets its name when it is locked, or another server might remove it
        try:
            new.mkdir(mode=0o700)
            (new / "metrics").mkdir()
            (new / "probe").write_bytes(bytes(MIN_FREE_BYTES))
            (new / "probe").unlink()
            with socket.socket(socket.AF_UNIX) as probe:  # their paths have a maximum length
                probe.bind(str(new / "probe.socket"))
            (new / "probe.socket").unlink()
            self._lock = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(self.path)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            raise RunFolderError(_not_writable(self.path.parent, error)) from error

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise RunFolderError(_not_writable(os.environ.get("TMPDIR", "/tmp"), error)) from error


def _not_writable(folder: object, error: OSError) -> str:
    reason = error.strerror or error
    return f"TMPDIR must be a folder with a short path where {MIN_FREE_BYTES:,} bytes can be written (got {folder}: {reason})"


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of servers that were killed: those that no process has locked."""
    for folder in parent.glob(f"{PREFIX}{'[0-9a-f]' * 16}"):
        with suppress(OSError):  # it is another user's, or in use
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                log.info("abandoned folder removed", folder=str(folder))
            finally:
                os.close(descriptor)


class Supervisor:
    """Starts the engines and the HTTP workers, restarts those that exit or hang, and ends them in order.

    An asynchronous context manager for any event loop, also that of a process which serves HTTP itself and wants engines only.

    Args:
        listeners: one listening socket for each HTTP worker.
        metrics_listener: what all of them serve metrics on; None serves them on the main port.
    """

    def __init__(
        self, settings: Settings, listeners: Sequence[socket.socket] = (), metrics_listener: socket.socket | None = None
    ) -> None:
        configs = settings.engine_configs
        self.run_folder = folder = RunFolder(_temporary_folder() / f"{PREFIX}{secrets.token_hex(8)}", len(configs))
        self._settings = settings
        self._engines = [
            SupervisedProcess(Command("engine", number, "app.engine", [str(socket)], config.model_dump_json()), status)
            for number, (config, socket, status) in enumerate(zip(configs, folder.sockets, folder.status_files, strict=True))
        ]
        # One worker counts in its own memory, which costs half as much as in files that others read.
        counted_together = {"PROMETHEUS_MULTIPROC_DIR": str(self.run_folder.metrics)} if len(listeners) > 1 else {}
        environment = {**os.environ, **counted_together}
        config = settings.model_dump_json(context={"reveal_keys": True})
        self._workers = []
        for number, listener in enumerate(listeners):
            sockets = [one.fileno() for one in (listener, metrics_listener) if one is not None]
            arguments = [str(folder.path), *map(str, sockets)]
            command = Command("HTTP worker", number, "app.cli.http_worker", arguments, config, sockets, environment)
            self._workers.append(SupervisedProcess(command, folder.path / f"http-{number}.json"))

    async def __aenter__(self) -> Self:
        remove_abandoned(self.run_folder.path.parent)
        self.run_folder.create()
        for process in (*self._engines, *self._workers):
            process.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            self.stop_workers(SIGTERM)
            seconds = self._settings.drain_seconds + SHUTDOWN_SECONDS + EXTRA_SECONDS
            await asyncio.gather(*(worker.wait(seconds) for worker in self._workers))
            for engine in self._engines:  # every request has been answered by now
                engine.stop()
            await asyncio.gather(*(engine.wait(EXTRA_SECONDS) for engine in self._engines))
        finally:
            self.run_folder.remove()

    def signal(self, number: Signals) -> None:
        """Pass on SIGHUP: store and API keys are read again. It would end processes that still start, which do not need it."""
        for process in (*self._engines, *self._workers):
            if process.is_ready.is_set():
                process.signal(number)

    def signal_workers(self, number: Signals) -> None:
        """Pass a signal on to the HTTP workers alone."""
        for worker in self._workers:
            worker.signal(number)

    async def wait_until_workers_ready(self) -> None:
        """Return when every HTTP worker has been ready once."""
        await asyncio.gather(*(worker.is_ready.wait() for worker in self._workers))

    def stop_workers(self, number: Signals) -> None:
        """Have the HTTP workers finish: ``SIGTERM`` leaves time for draining, ``SIGINT`` does not."""
        for worker in self._workers:
            worker.stop(number)
