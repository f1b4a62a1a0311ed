"""An HTTP worker process."""

import os
import socket
import sys
from pathlib import Path

from pydantic_settings import CliApp

from app.engine_client.follower import EngineFollower
from app.http.server import StoppingServer
from app.main import create_app
from app.observability import logging as log
from app.settings import Settings


def main() -> None:
    """Serve on the socket until SIGTERM or SIGINT."""
    descriptor, name = sys.argv[1:3]
    del sys.argv[1:3]
    settings = CliApp.run(Settings)
    log.configure(settings.log_level, settings.log_format)
    counts = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    app = create_app(settings, engine=EngineFollower(name), counts=counts)
    StoppingServer(app).run(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    main()
