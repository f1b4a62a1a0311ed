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
"""How long a connection may be idle between two requests: longer than clients and proxies keep theirs (Caddy 120 s, Go 90 s,
nginx 60 s, httpx 5 s). They must be the first to close one, or their next request may cross with the close and be lost."""


class GracefulServer(uvicorn.Server):
    """uvicorn, which goes on for ``drain_seconds`` after SIGTERM while ``/v2/health/ready`` answers 503.

    In that time, load balancers send requests elsewhere, so that none meets a closed port. SIGINT (Ctrl-C) or a second SIGTERM
    ends it early. The process then ends with status 0: process managers take one that dies of the signal for one that failed.
    """

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_connections(state.settings.body_timeout),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
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
