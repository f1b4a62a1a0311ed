"""Middleware around every request: its id, trace, log line and metrics, its body's limits, and a response even to a bug."""

import asyncio
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.engine_client.messages import Result
from app.http.errors import ApiError, error_response, unavailable
from app.http.state import AppState
from app.observability.tracing import TraceStep
from app.settings import Settings

log = structlog.get_logger(__name__)

CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; script-src 'self'"
)
PAGE_HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
"""Of every HTML page: it loads nothing from other hosts, and cannot be put into a frame."""
DOCS_HEADERS = PAGE_HEADERS | {"content-security-policy": f"{CONTENT_POLICY} 'unsafe-inline'"}
"""Of /docs, which FastAPI writes with an inline script."""
QUIET_ROUTES = ("/health", "/v2/health/live", "/v2/health/ready", "/metrics")
"""Programs request these every few seconds; they are logged at the level debug."""


@dataclass(slots=True)
class RequestLog:
    """What a route reports about its request, for the log, the metrics and the trace; nothing else of its content is kept."""

    traced: bool = False
    """Whether ``steps`` are wanted."""
    model: str = ""
    version: str = ""
    rows: int | None = None
    result: Result | None = None
    steps: list[TraceStep] = field(default_factory=list)


class RequestMiddleware:
    """Echoes or makes ``x-request-id``; logs, counts and traces the request; bounds its body; answers 500 if a handler raises."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers, method = dict(reversed([*scope["headers"]])), scope["method"]  # the first of two with one name counts
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if 0 < len(given) <= 128 and given.isascii() and given.isprintable() else os.urandom(16).hex()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if 300 <= message["status"] < 400:
                    _drop_host(sent)
                if any(name == b"content-type" and value.startswith(b"text/html") for name, value in sent):
                    page = DOCS_HEADERS if scope["path"].startswith("/docs") else PAGE_HEADERS
                    MutableHeaders(raw=sent).update(page)
            await send(message)

        tracing = self._state.tracing
        span = tracing.start(Headers(scope=scope)) if tracing else None
        trace_id = f"{span.get_span_context().trace_id:032x}" if span else _trace_id(headers)
        request = scope["request_log"] = RequestLog(traced=span is not None and span.is_recording())
        structlog.contextvars.clear_contextvars()  # a pipelined request inherits those of the previous one
        structlog.contextvars.bind_contextvars(request_id=request_id, **({"trace_id": trace_id} if trace_id else {}))
        try:
            await self._app(scope, _bounded(receive, scope, headers, self._state.settings), send_with_id)
        except asyncio.CancelledError:  # uvicorn cancels what is still in flight when the time to shut down is over
            if status is None:
                await error_response(unavailable("server: shutting down"))(scope, receive, send_with_id)
        except Exception:
            log.exception("unhandled exception")
            if status is None:
                await error_response(ApiError(500, "server: internal error (see its log)"))(scope, receive, send_with_id)
        finally:
            # Unknown paths share one label, or clients could make up any number of labels.
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - started
            self._state.metrics.count(request.model, request.version, method, route, status, seconds, request.result)
            write = log.debug if route in QUIET_ROUTES else log.info
            ms = round(seconds * 1e3, 2)
            write("request", method=method, route=route, model=request.model, status=status, rows=request.rows, ms=ms)
            if tracing and span:
                attributes = {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status or 0,
                    "jfb.model": request.model,
                    "jfb.rows": request.rows or 0,
                    "jfb.request_id": request_id,
                }
                tracing.end(
                    span, f"{method} {route}", attributes, request.result.timings if request.result else None, request.steps
                )


def _bounded(receive: Receive, scope: Scope, headers: Mapping[bytes, bytes], settings: Settings) -> Receive:
    """The body of a request; ``receive`` raises an ``ApiError`` for one that is late (408), or known to be too large (413)."""
    limit, seconds = settings.max_body_bytes, settings.body_timeout
    declared, connection = headers.get(b"content-length", b"0"), scope.get("connection")
    deadline: float | None = None
    size, complete = 0, False

    async def bounded() -> Message:
        nonlocal deadline, size, complete
        if complete:
            return await receive()
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + seconds
            if declared.isdigit() and int(declared) > limit:
                raise ApiError(413, f"body: must have at most {limit} bytes (got {declared.decode()})")
        if connection is not None and not connection.receiving:  # it is there, and a timer would cost more than to take it
            message = await receive()
        else:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                text = f"body: must arrive within {seconds:g} s (got {size} bytes)"
                raise ApiError(408, text, {"connection": "close"}) from error  # or the rest would be waited for
        size += len(message.get("body", b""))
        if size > limit:
            raise ApiError(413, f"body: must have at most {limit} bytes (got more)")
        complete = not message.get("more_body", False)
        return message

    return bounded


def _drop_host(headers: list[tuple[bytes, bytes]]) -> None:
    """Make redirects relative: Starlette builds them from the host that the client named."""
    for index, (name, value) in enumerate(headers):
        if name == b"location":
            target = urlsplit(value)
            headers[index] = name, urlunsplit((b"", b"", b"/" + target.path.lstrip(b"/"), target.query, b""))


def _trace_id(headers: Mapping[bytes, bytes]) -> str | None:
    given = headers.get(b"traceparent", b"").decode("latin-1")
    match = re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", given)
    return match[1] if match and match[1].strip("0") else None
