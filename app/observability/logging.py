"""The log: structlog for us, for uvicorn and for every library, in one form."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import structlog


def configure(level: str, form: str = "auto") -> None:
    """Log to stderr from ``level`` (debug, info, warning, error) on.

    Args:
        level: the least severe messages that are logged.
        form: ``console`` is lines for people, ``json`` a JSON object a line, ``auto`` the former on a terminal only.
    """
    console = sys.stderr.isatty() if form == "auto" else form == "console"
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Both kinds of traceback without the local variables: they would hold what clients sent.
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # not by way of logging, which doubles the cost of a line
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _to_json(event: object, default: Callable[[Any], Any]) -> str:
    """In a fraction of the time of ``json.dumps``; a line is a part of what a request costs."""
    return msgspec.json.encode(event, enc_hook=default).decode()
