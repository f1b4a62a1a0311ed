"""Stopping: SIGTERM first turns the server not ready, then lets it finish, and it ends with status 0."""

import signal
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.http.connection import arriving_within
from app.http.state import Server

SHUTDOWN_SECONDS = 10
"""How long requests in flight may take to end once the server has been told to stop."""

KEEP_ALIVE_SECONDS = 130
"""How long a connection may be idle between two requests: longer than clients and proxies keep theirs (Caddy 120 s, Go 90 s,
nginx 60 s, httpx 5 s). They must be the first to close one, or their next request may cross with the close and be lost."""


class StoppingServer(uvicorn.Server):
    """uvicorn, which goes on for ``drain_seconds`` after SIGTERM while ``/v2/health/ready`` answers 503.

    In that time whoever balances the load learns of it and sends requests elsewhere, so that none meets a closed port. SIGINT
    (Ctrl-C), or a second SIGTERM, ends that time. Either way the process ends with status 0: it has done what it was told,
    and supervisors take a process that dies of the signal (uvicorn raises it again) for one that failed.
    """

    def __init__(self, app: FastAPI) -> None:
        self._server: Server = app.state.server
        config = uvicorn.Config(
            app,
            host=self._server.settings.host,
            port=self._server.settings.port,
            http=arriving_within(self._server.settings.body_timeout),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        super().__init__(config)
        self._closes_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self._closes_at is None:
            self._closes_at = time.monotonic() + self._server.settings.drain_seconds
        elif sig == signal.SIGINT and self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True
        self._server.stopping.set()

    async def on_tick(self, counter: int) -> bool:
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)
