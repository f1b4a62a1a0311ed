"""``python -m app``: serve a model store; ``python -m app predict``: ask such a server."""

import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from app import log, terminal
from app.errors import in_our_words
from app.keys import KeysError
from app.main import create_app
from app.settings import Settings
from app.stopping import StoppingServer
from app.tracing import TracingMissing

SHUTDOWN_SECONDS = 10
"""How long requests in flight may take to end once the server has been told to stop."""


def main() -> None:
    """Read the settings, and serve until SIGTERM or SIGINT; or hand over to the terminal client."""
    if sys.argv[1:2] == ["predict"]:
        terminal.program(args=sys.argv[2:], prog_name="python -m app predict")
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        for problem in error.errors():
            message = in_our_words(problem["msg"])
            field = ".".join(map(str, problem["loc"]))
            sys.stderr.write(f"{field}: {message}, got {problem['input']!r}\n" if field else f"{message}\n")
        sys.exit(2)
    log.configure(settings.log_level, settings.log_format)
    try:
        app = create_app(settings)
    except (KeysError, TracingMissing) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = StoppingServer(config, app.state.server)
    server.run()
    if not server.started:
        sys.exit(3)  # it has logged why, such as a port in use


if __name__ == "__main__":
    main()
