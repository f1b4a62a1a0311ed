"""SupervisedProcess: a child process that is started again whenever it exits or hangs."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

import msgspec
import structlog
from msgspec.structs import replace

from app.supervisor.lifeline import READY

SHORT_LIFE_SECONDS = 15.0  # a process that was ready for longer is not one that exits again and again
MAX_BACKOFF_SECONDS = 30.0
MAX_KILL_SECONDS = 5.0

log = structlog.get_logger(__name__)


class ProcessStatus(msgspec.Struct, frozen=True):
    """How a supervised process is; its supervisor keeps it in a file that the other processes read."""

    ready: bool = False
    restarts: int = 0
    consecutive_exits: int = 0  # exits, each soon after the start; 0 again when a process lives
    last_error: str | None = None  # why there is no process now; None if there is one, or none has exited yet


def read_status(path: Path) -> ProcessStatus:
    """The status in a file; that of a process which was never started if there is none yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessStatus)
    except OSError:
        return ProcessStatus()


@dataclass(frozen=True)
class Command:
    """What to run."""

    kind: str  # `engine` or `HTTP worker`
    number: int  # among those of its kind
    module: str
    arguments: Sequence[str]
    config: str  # JSON that the process reads from its lifeline
    sockets: Sequence[int] = ()  # descriptors that it inherits
    environment: Mapping[str, str] | None = None  # None is that of this process
    hang_seconds: float = 10.0  # of silence, after which a process is killed
    start_seconds: float = 300.0  # the same, until it is ready for the first time


class SupervisedProcess:
    """Starts a command, and again whenever it exits or hangs: at once the first time, then with growing pauses.

    Its ``ProcessStatus`` is written to ``status_file`` whenever that changes.
    """

    def __init__(self, command: Command, status_file: Path) -> None:
        self.pid: int | None = None  # None while there is no process
        self.is_ready = asyncio.Event()  # set while the process serves
        self._command = command
        self._status_file = status_file
        self._status = ProcessStatus()
        self._stopping = asyncio.Event()
        self._log = log.bind(number=command.number)

    def start(self) -> None:
        """Keep the process running from now on."""
        self._task: asyncio.Task[None] = asyncio.create_task(self._run())

    def signal(self, number: Signals) -> None:
        """Send a signal, if there is a process."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, number: Signals = SIGTERM) -> None:
        """Send a signal, after which the process is not started again; the first call decides which signal that is."""
        if not self._stopping.is_set():
            self._stopping.set()
            self.signal(number)

    async def wait(self, seconds: float) -> None:
        """Return when the process has exited after ``stop``; kill it after some seconds."""
        done, _ = await asyncio.wait([self._task], timeout=seconds)
        if not done:
            self._log.warning(f"{self._command.kind} killed", pid=self.pid)
            self.signal(SIGKILL)
            await asyncio.wait([self._task], timeout=MAX_KILL_SECONDS)  # one that waits for a disk may not even end then

    async def _run(self) -> None:
        while True:
            try:
                reason = await self._run_once()
            except OSError as error:
                reason = f"could not be started: {error}"
            if self._stopping.is_set():
                return
            exits = self._status.consecutive_exits + 1
            pause = min(0.25 * 2 ** (exits - 1), MAX_BACKOFF_SECONDS) if exits > 1 else 0.0
            times = f" {exits} times in a row" if exits > 1 else ""
            last_error = f"exited{times} ({reason}) and is restarted {f'in {pause:g} s' if pause else 'now'}"
            self._set(replace(self._status, ready=False, consecutive_exits=exits, last_error=last_error))
            self._log.error(f"{self._command.kind} exited", reason=reason, consecutive_exits=exits, restart_in_seconds=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                    return
            self._set(replace(self._status, restarts=self._status.restarts + 1))

    async def _run_once(self) -> str:
        """Start the process and return when it has exited, saying how."""
        own, theirs = socket.socketpair()
        own.setblocking(False)
        with theirs:
            # In a session of its own, Ctrl-C reaches it by way of this process only, like any other signal.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._command.module, *self._command.arguments),
                stdin=theirs.fileno(),
                pass_fds=self._command.sockets,
                env=self._command.environment,
                start_new_session=True,
            )
        self.pid = process.pid
        reader, writer = await asyncio.open_connection(sock=own)
        writer.write(self._command.config.encode() + b"\n")
        exited = asyncio.create_task(process.wait())
        silent = asyncio.create_task(self._listen(reader))
        try:
            if self._stopping.is_set():  # while it was being started
                self.signal(SIGTERM)
            await asyncio.wait([exited, silent], return_when=asyncio.FIRST_COMPLETED)
            if not exited.done() and not silent.result():  # its end of the lifeline is closed: it is about to exit
                await asyncio.wait([exited], timeout=self._command.hang_seconds)
            hung = not exited.done()
        finally:
            self.is_ready.clear()
            silent.cancel()
            with suppress(ProcessLookupError):
                process.kill()
            code = await exited
            writer.close()
            self.pid = None
        reason = Signals(-code).name if code < 0 else f"status {code}"
        return "it did not respond" if hung else reason

    async def _listen(self, reader: asyncio.StreamReader) -> bool:
        """Note when the process is ready; return True when it has been silent for too long, False when it closed its end."""
        timeout, began = self._command.start_seconds, None
        while heard := await _read(reader, timeout):
            if READY in heard:
                timeout, began = self._command.hang_seconds, time.monotonic()
                self.is_ready.set()
                self._set(replace(self._status, ready=True, last_error=None))
                self._log.info(f"{self._command.kind} ready", pid=self.pid)
            elif began is not None and self._status.consecutive_exits and time.monotonic() - began > SHORT_LIFE_SECONDS:
                self._set(replace(self._status, consecutive_exits=0))
        return heard is None

    def _set(self, status: ProcessStatus) -> None:
        self._status = status
        new = self._status_file.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(status))
            new.rename(self._status_file)  # in one step, so that nothing half-written is read
        except OSError as error:  # a full disk; the process is supervised as before
            self._log.error("status not written", file=str(self._status_file), error=str(error))


async def _read(reader: asyncio.StreamReader, seconds: float) -> bytes | None:
    """What arrives within some seconds, or None."""
    for _ in range(2):  # an event loop that was blocked for long sees that its time is up before it sees what has arrived
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds / 2):
                try:
                    return await reader.read(4096)
                except ConnectionError:  # the process was killed before it had read its configuration
                    return b""
    return None
