"""Monitoring: metrics and health on a port of their own, so that the port of the clients need not show them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
import uvicorn
from fastapi import FastAPI

from app.http import errors
from app.http.state import Server
from app.routes import health, metrics

log = structlog.get_logger(__name__)


class _SecondServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the first server."""
        yield


@asynccontextmanager
async def monitoring(server: Server) -> AsyncIterator[None]:
    """Serve metrics and health on ``metrics_port``, if it is set; of several processes, the one that keeps the engine does.

    Raises:
        OSError: if nobody can listen there.
    """
    settings = server.settings
    if settings.metrics_port is None or not server.keeps_engine:
        yield
        return
    app = FastAPI(openapi_url=None)
    app.state.server = server
    errors.install(app)
    for routes in (health, metrics):
        app.include_router(routes.router)
    with socket.create_server((settings.host, settings.metrics_port)) as listening:
        second = _SecondServer(uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off"))
        serving = asyncio.create_task(second.serve([listening]))
        log.info("metrics and health have a port of their own", host=settings.host, port=listening.getsockname()[1])
        try:
            yield
        finally:
            second.should_exit = True
            await serving
