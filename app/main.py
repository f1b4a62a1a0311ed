"""The application: routes, errors, and an engine that starts and ends with it."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

import structlog
import typer
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from app.cli.banner import greeting
from app.cli.reloading import keeping_up
from app.engine_client.follower import EngineFollower
from app.engine_client.supervisor import EngineSupervisor
from app.http import errors
from app.http.api_keys import Keys
from app.http.auth import admin, user
from app.http.middleware import RequestMiddleware
from app.http.state import Server
from app.observability.metrics import Measures
from app.observability.metrics_server import monitoring
from app.observability.tracing import Tracing
from app.routes import health, metrics, models, openapi, pages, predict, repository
from app.routes import open_inference as inference
from app.settings import Settings

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None, *, engine: EngineFollower | None = None, counts: Path | None = None) -> FastAPI:
    """Build the application; ``uvicorn --factory app.main:create_app`` reads the settings from the environment.

    Args:
        settings: those of the environment if None.
        engine: the one to ask, which another process keeps; the application keeps its own if None.
        counts: folder in which all processes of this server count for Prometheus; there is one process if None.
    """
    settings = settings or Settings()
    keeper = engine or EngineSupervisor(
        settings.model_store,
        settings.device,
        settings.slots,
        settings.max_waiting_rows,
        settings.batching,
        settings.threads,
        backend=settings.backend,
        precision=settings.precision,
        session_bytes=settings.session_bytes,
        session_seconds=settings.session_seconds,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    keys, counted, shown = Keys(settings), CollectorRegistry(), CollectorRegistry()
    measures = Measures(counted)
    shown.register(counted if counts is None else MultiProcessCollector(None, str(counts)))  # type: ignore[no-untyped-call]
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    server = Server(settings, keeper, keys, shown, measures, tracing)
    server.on_hangup.append(keys.reload)

    # Offline: /docs has its scripts from here, since a closed network has no way to the host where FastAPI would look for them.
    app = FastAPIOffline(
        title="Implicit networks",
        summary="Fixed points, served by the iteration.",
        lifespan=_lifespan,
        favicon_url="static/icon.svg",
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # FastAPI's own, asked for at every request; we have ours
    )
    app.state.server = server
    if settings.cors_origins:
        origins = [origin.strip() for origin in settings.cors_origins.split(",")]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"])
    app.add_middleware(RequestMiddleware, server=server)  # the last is the outermost
    errors.install(app)
    metrics.install(server)
    for router in (predict.router, models.router, inference.router, inference.direct, repository.router):
        app.include_router(router, dependencies=[Depends(user)], responses=openapi.refusals(401))
    app.include_router(repository.admin_router, dependencies=[Depends(admin)], responses=openapi.refusals(401, 403))
    app.include_router(health.router)
    app.include_router(pages.router)
    app.mount("/static", pages.Static())
    if settings.metrics_port is None:
        app.include_router(metrics.router)
    openapi.install(app, server)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with running(app.state.server):
        gc.collect()
        gc.freeze()  # what has been loaded is here to stay: the collector need not go through it again for every few requests
        yield


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[None]:
    """Everything that goes on beside the requests: the engine, the looks at the store, the second port, the traces."""
    if isinstance(server.engine, EngineFollower):
        await server.engine.join()  # so that a process that follows another one answers from its first request on
    starting = asyncio.create_task(_start(server))  # in the background, so that /v2/health/live answers at once
    try:
        async with keeping_up(server), monitoring(server), server.tracing.sending() if server.tracing else nullcontext():
            yield
    finally:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await server.engine.stop(grace=2)  # every request has been answered by now, so the engine has nothing to finish


async def _start(server: Server) -> None:
    try:
        await server.engine.start()
        if server.keeps_engine:
            typer.echo(greeting(server.settings, server.catalogue))
    except Exception:
        log.exception("the engine did not start")
