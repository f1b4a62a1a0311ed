"""EngineSupervisor: keeps an engine process alive."""

import asyncio
import itertools
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog

from app.engine_client.client import EngineClient
from app.engine_client.errors import EngineDied
from app.engine_client.standing import Standing

SHORT_LIFE = 15.0
"""Seconds; an engine that was ready for longer is not one that dies again and again."""
LONGEST_PAUSE = 30.0
"""Seconds at most between two starts."""
SECONDS_BETWEEN_LOOKS = 1.0

log = structlog.get_logger(__name__)


class EngineSupervisor:
    """Starts an engine process, and another one whenever it dies or hangs. Everything runs in one event loop.

    An engine is ready when it has loaded its models and answers. After the first death the next one starts at once, and
    with growing pauses if it keeps dying.

    Args:
        store: model store to serve.
        device: where to compute; ``auto`` is CUDA where there is one. Several with commas.
        slots: rows iterated at a time, a version and device; what a measurement finds worthwhile if None.
        max_waiting_rows: rows that may wait for a slot, a version.
        batching: when the batch is reshaped; see ``app.engine.scheduler.Engine``.
        threads: CPU threads of PyTorch; its own choice if None.
        backend, precision: see ``app.engine.backends``.
        hang_timeout: seconds of silence after which a living engine is killed.
        start_timeout: the same, for one that is still loading.
        session_bytes, session_seconds: as in ``app.engine.warm_starts.Sessions``.
        log_level, log_format: of the engine process; see ``app.observability.logging.configure``.

    Attributes:
        client: asks the engine; raises ``EngineDied`` while there is none.
        ready: whether there is one.
        restarts: how often one was started again.
        ends_in_a_row: how many engines have ended, each soon after its start; 0 again when one lives.
        trouble: why there is no engine now, where one ended; None if there is one, or was none yet.
        on_change: called whenever ``standing`` has changed.
    """

    def __init__(
        self,
        store: Path,
        device: str,
        slots: int | None,
        max_waiting_rows: int,
        batching: Literal["iteration", "lockstep"] = "iteration",
        threads: int | None = None,
        *,
        backend: str = "auto",
        precision: str = "auto",
        hang_timeout: float = 10.0,
        start_timeout: float = 300.0,
        session_bytes: int = 2**26,
        session_seconds: float = 300.0,
        log_level: str = "info",
        log_format: str = "auto",
    ) -> None:
        self.client = EngineClient()
        self.restarts = 0
        self.ends_in_a_row = 0
        self.trouble: str | None = None
        self.on_change: list[Callable[[], None]] = []
        self._address: str | None = None
        self._arguments = [
            f"--store={store}",
            f"--device={device}",
            f"--max-waiting-rows={max_waiting_rows}",
            f"--batching={batching}",
            f"--backend={backend}",
            f"--precision={precision}",
            f"--session-bytes={session_bytes}",
            f"--session-seconds={session_seconds}",
            f"--log-level={log_level}",
            f"--log-format={log_format}",
        ]
        if slots is not None:
            self._arguments.append(f"--slots={slots}")
        if threads is not None:
            self._arguments.append(f"--threads={threads}")
        self._hang_timeout = hang_timeout
        self._start_timeout = start_timeout
        self._last_end = "it could not be started"
        self._ready = asyncio.Event()
        self._stopping = False
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def standing(self) -> Standing:
        """All of that, for processes that ask the same engine."""
        return Standing(self._address, self.ready, self.restarts, self.ends_in_a_row, self.trouble)

    @property
    def pid(self) -> int | None:
        """Of the engine process, None while there is none."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the engine and return when it is ready; cancelling the wait does not stop the engine."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        await self._ready.wait()

    async def stop(self, grace: float = 10.0) -> None:
        """Let the engine finish what it has, and end it.

        Args:
            grace: seconds until it is killed.
        """
        self._stopping = True
        if self._keeper is not None:
            if self._process is not None:
                with suppress(ProcessLookupError):
                    self._process.terminate()
                await asyncio.wait([self._keeper], timeout=grace)
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self.client.close()

    async def _keep(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="jfb-engine-"))  # nobody but this user can enter it and connect
        try:
            for life in itertools.count():
                try:
                    await self._live(f"ipc://{folder / str(life)}")
                except OSError as error:
                    log.error("the engine process cannot be started", error=str(error))
                if self._stopping:
                    return
                self.ends_in_a_row = ends = self.ends_in_a_row + 1
                pause = min(0.25 * 2 ** (ends - 1), LONGEST_PAUSE) if ends > 1 else 0.0
                self.trouble = (
                    f"it ended {'once' if ends == 1 else f'{ends} times in a row'} ({self._last_end}) "
                    f"and is started again {f'after {pause:g} s' if pause else 'at once'}"
                )
                self._changed()
                log.error("the engine process ended and is started again", ends_in_a_row=ends, pause=pause)
                await asyncio.sleep(pause)
                self.restarts += 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _live(self, address: str) -> None:
        """Start an engine and stay with it until it has ended."""
        self._last_end = "it could not be started"
        unloaded = self.client.state.unloaded if self.client.state else []  # a restart does not undo what was asked for
        command = [
            *(sys.executable, "-m", "app.engine", f"--address={address}", *self._arguments),
            *(f"--unloaded={model}" for model in unloaded),
        ]
        # The engine reads its standard input only to notice that this process, which holds the other end, is gone.
        # Its own session keeps Ctrl-C from it, which is for this process to act on.
        self._process = process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, start_new_session=True)
        self.client.connect(address)
        self._address = address
        self._changed()
        death = asyncio.create_task(process.wait())
        hang = asyncio.create_task(self._watch())
        try:
            await asyncio.wait([death, hang], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ready.clear()
            self._changed()
            hang.cancel()
            with suppress(ProcessLookupError):
                process.kill()
            code = await death
            self._last_end = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            self._process, self._address = None, None
            self._changed()
            await self.client.disconnect()
            log.info("the engine process ended", pid=process.pid, exit_code=process.returncode)

    async def _watch(self) -> None:
        """Say when the engine is ready; return when it does not answer any more."""
        with suppress(TimeoutError, EngineDied):
            await self.client.look(self._start_timeout)
            self._ready.set()
            self.trouble = None
            self._changed()
            log.info("the engine is ready", pid=self.pid)
            began = time.monotonic()
            while True:
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
                if time.monotonic() - began > SHORT_LIFE:
                    self.ends_in_a_row = 0
                try:
                    await self.client.look(self._hang_timeout / 2)
                except TimeoutError:  # asked twice, because a stall of this process looks the same
                    await self.client.look(self._hang_timeout / 2)

    def _changed(self) -> None:
        for reaction in self.on_change:
            reaction()
