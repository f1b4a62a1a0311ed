"""One of several HTTP processes; ``app.http_workers`` starts it: with a listening socket, a name, and the server's own flags."""

import os
import socket
import sys
from pathlib import Path

from pydantic_settings import CliApp

from app import log
from app.engine.follower import EngineFollower
from app.main import create_app
from app.settings import Settings
from app.stopping import StoppingServer


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
