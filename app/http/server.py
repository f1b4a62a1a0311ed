"""GracefulServer: uvicorn, which drains after SIGTERM and ends with status 0."""

import asyncio
import signal
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from app.http.connection import bounded_connections
from app.http.state import AppState
from app.supervisor.supervisor import SHUTDOWN_SECONDS

KEEP_ALIVE_SECONDS = 130
"""Of an idle connection: clients and proxies (Caddy 120 s, Go 90 s) must close first, or a request may cross with the close."""


class GracefulServer(uvicorn.Server):
    """uvicorn, which goes on for ``drain_seconds`` after SIGTERM, while ready answers 503, and ends with status 0."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        config = uvicorn.Config(
            app,
            http=bounded_connections(state.settings.body_timeout),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """React to a signal: uvicorn calls this from its signal handler, in the main thread."""
        first = not self._state.stopping.is_set()
        self._state.stopping.set()
        if sig == signal.SIGTERM and first:
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self._state.settings.drain_seconds, self._exit)
        elif sig == signal.SIGINT and self.should_exit:
            self.force_exit = True
        else:
            self._exit()

    def _exit(self) -> None:
        self.should_exit = True
