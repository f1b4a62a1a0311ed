"""An HTTP worker process of the supervisor; its arguments are the run folder and the descriptors of listening sockets."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.server import GracefulServer
from app.main import create_app, create_metrics_app
from app.observability.logging import configure_logging
from app.settings import Settings
from app.supervisor.lifeline import HEARTBEAT_SECONDS, Lifeline
from app.supervisor.supervisor import RunFolder


def main() -> None:
    """Serve until SIGTERM or SIGINT, or until the supervisor exits."""
    lifeline = Lifeline()
    settings = Settings.model_validate_json(lifeline.config)
    configure_logging(settings.log_level, settings.log_format)
    folder, *descriptors = sys.argv[1:]
    listeners = [socket.socket(fileno=int(descriptor)) for descriptor in descriptors]
    application = create_app(settings, RunFolder(Path(folder), len(settings.engine_configs)))
    state, app = application.state.server, cast(ASGIApp, application)
    if len(listeners) > 1:
        app = _ByPort(app, {listeners[1].getsockname()[1]: create_metrics_app(state)})
    lifeline.on_parent_exit(lambda: signal.raise_signal(signal.SIGTERM))
    server = GracefulServer(app, state)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_serve(server, listeners, lifeline))
    os._exit(0)  # whatever a thread waits for


async def _serve(server: GracefulServer, listeners: list[socket.socket], lifeline: Lifeline) -> None:
    heartbeat = asyncio.create_task(_beat(server, lifeline))
    await server.serve(listeners)
    heartbeat.cancel()


async def _beat(server: GracefulServer, lifeline: Lifeline) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    lifeline.report_ready()
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        lifeline.beat()


class _ByPort:
    """Sends what arrives on some ports to other applications."""

    def __init__(self, app: ASGIApp, others: dict[int, ASGIApp]) -> None:
        self._app = app
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = scope.get("server")
        app = self._others.get(server[1], self._app) if server else self._app
        await app(scope, receive, send)


if __name__ == "__main__":
    main()
