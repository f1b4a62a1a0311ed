"""EngineFollower: asks an engine that another process keeps."""

import asyncio
import signal
import sys
from contextlib import suppress

import msgspec
import structlog

from app.engine_client.client import EngineClient
from app.engine_client.errors import EngineDied
from app.engine_client.standing import Standing
from app.engine_client.supervisor import SECONDS_BETWEEN_LOOKS

LOOK_SECONDS = 10.0
"""How long the engine may take to say what it holds; it is its keeper who ends one that hangs."""

log = structlog.get_logger(__name__)


class EngineFollower:
    """For one of several HTTP processes, what ``EngineSupervisor`` is for a single one; it starts and ends no engine.

    The standard input brings a ``Standing`` a line, as JSON, whenever that has changed. When it closes, the keeper has ended,
    and the engine with it; then this process is told to end too.

    Args:
        name: of this process among the engine's clients.

    Attributes:
        client: as of ``EngineSupervisor``.
        standing: what was told last.
    """

    def __init__(self, name: str) -> None:
        self.client = EngineClient(name)
        self.standing = Standing()
        self._told = asyncio.Event()
        self._looked = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.standing.ready and self._looked.is_set()

    @property
    def restarts(self) -> int:
        return self.standing.restarts

    @property
    def ends_in_a_row(self) -> int:
        return self.standing.ends_in_a_row

    @property
    def trouble(self) -> str | None:
        return self.standing.trouble

    async def join(self) -> None:
        """Begin to listen; return when it is known how the engine is, and what it holds if it is ready."""
        self._listening = asyncio.create_task(self._listen())
        await self._told.wait()
        if self.standing.ready:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._looked.wait()

    async def start(self) -> None:
        """Return when the engine is ready."""
        await self._looked.wait()

    async def stop(self, grace: float = 0.0) -> None:
        """Leave the engine; it goes on, so there is nothing that ``grace`` could be for."""
        for task in (self._listening, self._looking):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self.client.close()

    async def _listen(self) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        while line := await reader.readline():
            await self._take(msgspec.json.decode(line, type=Standing))
        log.error("the process that keeps the engine has ended, and so does this one")
        await self._take(Standing(trouble="the process that keeps it has ended"))
        signal.raise_signal(signal.SIGTERM)

    async def _take(self, standing: Standing) -> None:
        before, self.standing = self.standing, standing
        if standing.address != before.address:
            if self._looking is not None:
                self._looking.cancel()
            self._looked.clear()
            await self.client.disconnect()
            if standing.address is not None:
                self.client.connect(standing.address)
        if standing.ready and not before.ready:
            self._looking = asyncio.create_task(self._look_on())
        self._told.set()

    async def _look_on(self) -> None:
        """Know what the engine serves; its keeper sees by its own looks whether it still answers."""
        while True:
            with suppress(TimeoutError, EngineDied):
                await self.client.look(LOOK_SECONDS)
                self._looked.set()
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
