"""Several HTTP processes before one engine: this one keeps the engine and them, and takes no requests itself.

Each of them has a listening socket of its own on the same port, and the system deals the connections out. All those sockets
are made here and stay open, so that connections that wait for a worker which died are taken by the one that follows it.
"""

import asyncio
import itertools
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from app.engine_client.errors import EngineDied
from app.engine_client.supervisor import LONGEST_PAUSE, SHORT_LIFE, EngineSupervisor
from app.http.server import SHUTDOWN_SECONDS
from app.http.state import Server
from app.main import create_app, running
from app.settings import Settings

LAST_SECONDS = 5.0
"""What a worker may take longer to end than its requests may."""

log = structlog.get_logger(__name__)


async def serve(settings: Settings, arguments: Sequence[str]) -> None:
    """Serve with ``http_workers`` processes until SIGTERM or SIGINT.

    Args:
        settings: of the server.
        arguments: the flags that they were read from, for the workers to read again.

    Raises:
        SystemExit: with status 3 if nobody can listen on the port.
        KeysError, TracingMissing: as ``create_app``.
    """
    with tempfile.TemporaryDirectory(prefix="jfb-counts-") as counts:
        server: Server = create_app(settings, counts=Path(counts)).state.server
        try:
            sockets = _listen(settings)
        except OSError as error:
            log.error("the port cannot be listened on", error=str(error))
            raise SystemExit(3) from error
        await _Workers(server, sockets, arguments, counts).run()


def _listen(settings: Settings) -> list[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    address = (settings.host, settings.port)
    # Without reuse_port, this one finds out whether the port is free: another server's workers would share theirs with ours.
    with socket.create_server(address, family=family) as first:
        address = first.getsockname()[:2]
    return [socket.create_server(address, family=family, reuse_port=True) for _ in range(settings.http_workers)]


class _Workers:
    def __init__(self, server: Server, sockets: list[socket.socket], arguments: Sequence[str], counts: str) -> None:
        self._server = server
        self._sockets = sockets
        self._arguments = arguments
        self._environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": counts}
        self._processes: dict[str, Process] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        self._server.on_hangup.append(lambda: self._signal(signal.SIGHUP))
        assert isinstance(self._server.engine, EngineSupervisor)
        self._server.engine.on_change.append(self._tell)
        host, port = self._sockets[0].getsockname()[:2]
        log.info("HTTP processes share a port", host=host, port=port, http_workers=len(self._sockets))
        async with running(self._server):
            await asyncio.gather(*(self._keep(number, own) for number, own in enumerate(self._sockets)))

    async def _keep(self, number: int, listening: socket.socket) -> None:
        """Start a worker, and another one whenever it ends, until the server is told to stop."""
        ends_in_a_row = 0
        for life in itertools.count():
            began = time.monotonic()
            await self._live(f"http-{number}-{life}", listening)
            if self._stopping.is_set():
                return
            ends_in_a_row = 1 if time.monotonic() - began > SHORT_LIFE else ends_in_a_row + 1
            pause = min(0.25 * 2 ** (ends_in_a_row - 1), LONGEST_PAUSE) if ends_in_a_row > 1 else 0.0
            log.error("an HTTP process ended and is started again", ends_in_a_row=ends_in_a_row, pause=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                    return

    async def _live(self, name: str, listening: socket.socket) -> None:
        command = [sys.executable, "-m", "app.http.worker", str(listening.fileno()), name, *self._arguments]
        # By its standard input it learns how the engine is, and that this process is gone. In a session of its own, Ctrl-C
        # reaches it by way of this process only, like any other signal.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, pass_fds=[listening.fileno()], env=self._environment, start_new_session=True
        )
        self._processes[name] = process
        self._tell()
        if self._stopping.is_set():  # while it was being started
            self._signal(signal.SIGTERM)
        code = await process.wait()
        del self._processes[name]
        log.info("an HTTP process ended", name=name, pid=process.pid, exit_code=code)
        with suppress(EngineDied):
            await self._server.engine.client.forget(name)

    def _tell(self) -> None:
        line = msgspec.json.encode(self._server.engine.standing) + b"\n"
        for process in self._processes.values():
            if process.stdin is not None and not process.stdin.is_closing():
                process.stdin.write(line)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            self._server.stopping.set()  # for the health on metrics_port
            for own in self._sockets:  # from now on a port that no worker listens on is closed
                own.close()
            patience = self._server.settings.drain_seconds + SHUTDOWN_SECONDS + LAST_SECONDS
            asyncio.get_running_loop().call_later(patience, self._signal, signal.SIGKILL)
        self._signal(number)
