"""The application: routes, errors, and an engine that starts and ends with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
import typer
from fastapi import FastAPI

from app import errors, openapi
from app.engine.supervisor import EngineSupervisor
from app.greeting import greeting
from app.middleware import RequestMiddleware
from app.routes import health, inference, metrics, models, predict, repository
from app.server import Server
from app.settings import Settings

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; ``uvicorn --factory app.main:create_app`` reads the settings from the environment."""
    settings = settings or Settings()
    engine = EngineSupervisor(
        settings.model_store,
        settings.device,
        settings.slots,
        settings.max_waiting_rows,
        settings.batching,
        settings.threads,
        log_level=settings.log_level,
    )
    server = Server(settings, engine)

    app = FastAPI(title="Implicit networks", summary="Fixed points, served by the iteration.", lifespan=_lifespan)
    app.state.server = server
    app.add_middleware(RequestMiddleware, metrics=server.metrics)
    errors.install(app)
    metrics.install(server)
    for router in (predict.router, models.router, inference.router, repository.router, repository.admin_router):
        app.include_router(router)
    for router in (health.router, metrics.router):
        app.include_router(router)
    openapi.install(app, server)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    server: Server = app.state.server
    starting = asyncio.create_task(_start(server))  # in the background, so that /v2/health/live answers at once
    try:
        yield
    finally:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await server.engine.stop(grace=2)  # every request has been answered by now, so the engine has nothing to finish


async def _start(server: Server) -> None:
    try:
        await server.engine.start()
        typer.echo(greeting(server.settings, server.catalogue))
    except Exception:
        log.exception("the engine did not start")
