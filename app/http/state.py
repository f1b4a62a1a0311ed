"""AppState: what the routes share."""

from dataclasses import dataclass, field
from threading import Event
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from app.engine_client.client import Engines
from app.http.auth import ApiKeys
from app.observability.request_log import RequestLog
from app.observability.tracing import Tracing
from app.settings import Settings
from app.supervisor.supervisor import RunFolder


@dataclass(eq=False)
class AppState:
    """One running application's settings, engines, API keys and log of requests."""

    settings: Settings
    engines: Engines
    run_folder: RunFolder
    api_keys: ApiKeys
    registry: CollectorRegistry
    """What Prometheus reads."""
    request_log: RequestLog
    tracing: Tracing | None = None
    stopping: Event = field(default_factory=Event)
    """Set when the server has been told to stop; it still answers for a while, but is not ready."""


async def _app_state(request: Request) -> AppState:  # FastAPI would call a plain function in a thread, for every request
    state: AppState = request.app.state.server
    return state


State = Annotated[AppState, Depends(_app_state)]
