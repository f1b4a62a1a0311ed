"""The log: structlog for this project, uvicorn and every library, in one format."""

import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import msgspec
import structlog

REQUEST_FIELDS: ContextVar[Mapping[str, str]] = ContextVar("request_fields", default=MappingProxyType({}))
"""What each log line of a request has; structlog's own variables, one per field, would take ten times as long to set."""


def configure_logging(level: str, log_format: str = "auto") -> None:
    """Log to stderr what is at least as severe as ``level``; the arguments are the settings of these names."""
    console = sys.stderr.isatty() if log_format == "auto" else log_format == "console"
    stamp = structlog.processors.MaybeTimeStamper(fmt="iso", utc=True)
    shared: list[structlog.typing.Processor] = [_add_request_fields, structlog.stdlib.add_log_level, stamp]
    # Tracebacks have no local variables, which would hold what clients sent.
    plain, colors = structlog.dev.plain_traceback, sys.stderr.isatty()
    renderer: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    if not console:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
    structlog.configure(
        processors=[*shared, *renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # through logging, a line would cost twice as much
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    processors = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=processors))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _add_request_fields(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**REQUEST_FIELDS.get(), **event}


def _to_json(event: object, default: Callable[[Any], Any]) -> str:
    """Encode in a fraction of the time of ``json.dumps``: a log line is part of what a request costs."""
    return msgspec.json.encode(event, enc_hook=default).decode()
