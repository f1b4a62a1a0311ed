"""Server: what the routes share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from app.engine_client.catalogue import Catalogue
from app.engine_client.follower import EngineFollower
from app.engine_client.messages import State
from app.engine_client.supervisor import EngineSupervisor
from app.http.api_keys import Keys
from app.http.errors import unavailable
from app.observability.metrics import Measures
from app.observability.tracing import Tracing
from app.settings import Settings


@dataclass(eq=False)
class Server:
    """The settings, the engine's keeper and the counters of one running application."""

    settings: Settings
    engine: EngineSupervisor | EngineFollower
    keys: Keys
    metrics: CollectorRegistry
    """What Prometheus reads."""
    measures: Measures
    """What is counted here for it."""
    tracing: Tracing | None = None
    stopping: Event = field(default_factory=Event)
    """Set when the server has been told to end; it then answers for a while, but is not ready."""
    on_hangup: list[Callable[[], None]] = field(default_factory=list)
    """What SIGHUP calls."""
    _read: tuple[State, Catalogue] | None = field(default=None, init=False)
    """The catalogue of the engine's latest word, read once and not for every request."""

    @property
    def keeps_engine(self) -> bool:
        """Whether the engine is this process's to keep, and not another's that has several HTTP processes."""
        return isinstance(self.engine, EngineSupervisor)

    @property
    def catalogue(self) -> Catalogue:
        """The models that the engine holds, as it last said.

        Raises:
            Refusal: 503 until the engine has loaded them for the first time.
        """
        state = self.engine.client.state
        if state is None:
            raise unavailable("engine: the models are being loaded")
        if self._read is None or self._read[0] is not state:
            self._read = state, Catalogue(state.served, state.refused, self.settings.default_model)
        return self._read[1]


async def _of(request: Request) -> Server:  # FastAPI would call a plain function in a thread, for every request
    server: Server = request.app.state.server
    return server


ServerOfRequest = Annotated[Server, Depends(_of)]
