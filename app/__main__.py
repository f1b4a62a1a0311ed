"""``python -m app``: serve a model store; ``python -m app predict``: ask such a server."""

import asyncio
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from app.cli import http_workers
from app.cli import predict as terminal
from app.cli.scheduling import let_steps_end
from app.http.api_keys import KeysError
from app.http.errors import in_our_words
from app.http.server import StoppingServer
from app.main import create_app
from app.observability import logging as log
from app.observability.tracing import TracingMissing
from app.settings import Settings


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
    let_steps_end()
    try:
        if settings.http_workers > 1:
            asyncio.run(http_workers.serve(settings, sys.argv[1:]))
            return
        server = StoppingServer(create_app(settings))
    except (KeysError, TracingMissing) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    server.run()
    if not server.started:
        sys.exit(3)  # it has logged why, such as a port in use


if __name__ == "__main__":
    main()
