"""The application: routes, errors and middleware in front of the engines."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from app.engine_client.client import Engines
from app.http import errors
from app.http.auth import AccessRoute, ApiKeys
from app.http.fast_route import FastRoute, FastRoutes
from app.http.middleware import RequestMiddleware
from app.http.state import AppState
from app.observability.metrics import AllWorkers, Metrics
from app.observability.request_log import RequestLog
from app.observability.tracing import Tracing
from app.routes import health, metrics, model_statistics, models, open_inference, openapi, pages, predict, repository
from app.settings import Settings
from app.supervisor.supervisor import RunFolder, Supervisor


def create_app(settings: Settings | None = None, run_folder: RunFolder | None = None) -> FastAPI:
    """Build the application, with engines of its own unless a ``run_folder`` is given; ``uvicorn --factory`` can start it."""
    settings = settings or Settings()
    supervisor = None
    if run_folder is None:
        supervisor = Supervisor(settings)
        run_folder = supervisor.run_folder
    state = _create_state(settings, run_folder)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if supervisor is not None:
                await stack.enter_async_context(supervisor)
            await stack.enter_async_context(state.engines)
            stack.callback(state.request_log.write)
            if state.tracing is not None:
                stack.push_async_callback(asyncio.to_thread, state.tracing.close)
            if settings.grpc_port is not None:
                from app.grpc.server import grpc_server  # an extra

                await stack.enter_async_context(grpc_server(app, settings))
            _reload_on_sighup(state, supervisor)
            if any(socket.exists() for socket in state.run_folder.sockets):
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):  # a worker that was restarted waits for running engines
                        await state.engines.wait_until_ready()
            gc.collect()
            gc.freeze()  # what has been loaded stays; the collector need not look at it again
            yield

    # Offline: /docs is self-contained, as a closed network cannot reach the host that FastAPI would load scripts from.
    app = FastAPIOffline(
        title="Implicit networks",
        summary="Fixed points, batched at the level of iterations.",
        description="[Playground](./) · [Engine](engine)",  # /docs shows it, so that the pages link to each other
        lifespan=lifespan,
        favicon_url="static/icon.svg",
        redoc_url=None,
        strict_content_type=False,  # Triton's clients send JSON without a content type
        generate_unique_id_function=openapi.operation_id,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # FastAPI's own, which would cost time per request
    )
    app.state.server = state
    errors.install(app)
    routers = [pages.model_router]
    routers += [module.router for module in (predict, models, model_statistics, open_inference, repository, health, pages)]
    routers += [open_inference.infer_router, repository.admin_router]
    if settings.metrics_port is None:
        routers.append(metrics.router)
    include(app, routers)
    app.mount("/static", pages.Static())
    openapi.install(app, state)
    app.middleware_stack = _middleware(app, state)
    return app


def _middleware(app: FastAPI, state: AppState) -> ASGIApp:
    """What a request passes, around FastAPI's own layers, which those for fast routes do not pass."""
    may_be_fast = [*predict.router.routes, *open_inference.infer_router.routes]
    fast = FastRoutes(app.build_middleware_stack(), [route for route in may_be_fast if isinstance(route, FastRoute)])
    layers: ASGIApp = fast
    if state.settings.cors_origins:
        origins = [origin.strip() for origin in state.settings.cors_origins.split(",")]
        layers = CORSMiddleware(fast, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"])
    return RequestMiddleware(layers, state)


def create_metrics_app(state: AppState) -> FastAPI:
    """Build what is served on the metrics port: metrics and health of an application."""
    app = FastAPI(openapi_url=None)
    app.state.server = state
    errors.install(app)
    include(app, [health.router, metrics.router])
    return app


def _create_state(settings: Settings, run_folder: RunFolder) -> AppState:
    counted, registry = CollectorRegistry(), CollectorRegistry()
    counts = Metrics(counted)
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")  # set by the supervisor: one worker shows what all have counted
    source: Collector = MultiProcessCollector(None, folder) if folder else counted  # type: ignore[no-untyped-call]
    engines = Engines(run_folder.sockets, settings.default_model)
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    state = AppState(settings, engines, run_folder, ApiKeys(settings), registry, RequestLog(counts), tracing)
    registry.register(AllWorkers(source, counts))
    registry.register(metrics.EngineCollector(state))
    return state


def include(app: FastAPI, routers: list[APIRouter]) -> None:
    """Include routers, all of whose routes have decided about access."""
    for router in routers:
        for route in router.routes:
            if not isinstance(route, AccessRoute):
                raise TypeError(f"{route}: must be an AccessRoute, which has decided whose key it wants")
        app.include_router(router)


def _reload_on_sighup(state: AppState, supervisor: Supervisor | None) -> None:
    def reload() -> None:
        state.api_keys.users.reload()
        state.api_keys.admins.reload()
        if supervisor is not None:
            supervisor.signal(signal.SIGHUP)

    with suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread, or not on this system
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
