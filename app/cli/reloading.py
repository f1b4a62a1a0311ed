"""Reloading: the server keeps up with its model store, when it is told to (SIGHUP) and, if the settings say so, by itself."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from app.engine_client.errors import EngineDied
from app.http.state import Server

log = structlog.get_logger(__name__)


@asynccontextmanager
async def keeping_up(server: Server) -> AsyncIterator[None]:
    """Have SIGHUP call all of ``server.on_hangup``, among which this puts a look at the store; look every ``poll_seconds``.

    Of several processes, only the one that keeps the engine looks.
    """
    told = asyncio.Event()
    server.on_hangup.append(told.set)
    loop = asyncio.get_running_loop()
    with suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread, or not on this system
        loop.add_signal_handler(signal.SIGHUP, _call_all, server)
    looking = asyncio.create_task(_look(server, told) if server.keeps_engine else told.wait())
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        with suppress(ValueError, RuntimeError, NotImplementedError):
            loop.remove_signal_handler(signal.SIGHUP)


def _call_all(server: Server) -> None:
    for reaction in server.on_hangup:
        reaction()


async def _look(server: Server, told: asyncio.Event) -> None:
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(server.settings.poll_seconds):
                await told.wait()
        was_told = told.is_set()
        told.clear()
        try:
            refused = await server.engine.client.reload()
        except EngineDied:
            continue  # the next engine begins with a look at the store
        if was_told:
            log.info("looked at the model store", refused=refused)
