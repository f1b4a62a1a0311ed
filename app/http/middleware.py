"""Middleware around every request: its id, trace, log line and metrics, its body's limits, and a response even to a bug."""

import asyncio
import random
import re
import time
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.errors import INTERNAL_ERROR, ApiError, error_response, unavailable
from app.http.state import AppState
from app.observability.logging import REQUEST_FIELDS
from app.observability.record import RequestRecord
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
        method = scope["method"]
        headers = scope["headers_by_name"] = dict(reversed([*scope["headers"]]))  # the first of two with one name counts
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        is_id = 0 < len(given) <= 128 and given.isascii() and given.isprintable()
        request_id = given if is_id else f"{random.getrandbits(128):032x}"
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
        fields = {"request_id": request_id, "trace_id": trace_id} if trace_id else {"request_id": request_id}
        REQUEST_FIELDS.set(fields)
        record = scope["record"] = RequestRecord(fields, method, traced=span is not None and span.is_recording())
        try:
            await self._app(scope, _bounded(receive, scope, headers, self._state.settings), send_with_id)
        except asyncio.CancelledError:  # uvicorn cancels what is still in flight when the time to shut down is over
            if status is None:
                await error_response(unavailable("server: shutting down"))(scope, receive, send_with_id)
        except Exception:
            log.exception("unhandled exception")
            if status is None:
                await error_response(INTERNAL_ERROR)(scope, receive, send_with_id)
        finally:
            record.route = getattr(scope.get("route"), "path", record.route)
            record.status, record.seconds = status, time.perf_counter() - started
            self._state.request_log.add(record)
            if tracing and span:
                attributes = {
                    "http.request.method": method,
                    "http.route": record.route,
                    "http.response.status_code": status or 0,
                    "jfb.model": record.model,
                    "jfb.rows": record.rows or 0,
                    "jfb.request_id": request_id,
                }
                timings = record.result.timings if record.result else None
                tracing.end(span, f"{method} {record.route}", attributes, timings, record.steps)


def _bounded(receive: Receive, scope: Scope, headers: Mapping[bytes, bytes], settings: Settings) -> Receive:
    """The body of a request; ``receive`` raises an ``ApiError`` for one that is late (408), or known to be too large (413)."""
    limit, seconds = settings.max_body_bytes, settings.body_timeout
    declared, connection = headers.get(b"content-length", b"0"), scope.get("connection")
    if connection is not None and not connection.receiving and b"transfer-encoding" not in headers and int(declared) <= limit:
        return receive  # all of it is there, and has the size that was declared: a timer would cost more than to take it
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
    if b"traceparent" not in headers:
        return None
    given = headers[b"traceparent"].decode("latin-1")
    match = re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", given)
    return match[1] if match and match[1].strip("0") else None
