"""Around every request: an id, a trace, one line in the log, one count in the metrics, and an answer even to a bug."""

import asyncio
import os
import re
import time
from collections.abc import Mapping

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.errors import Refusal, respond, unavailable
from app.http.state import Server

log = structlog.get_logger(__name__)

PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; script-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
"""Of every HTML page: it loads nothing from elsewhere, and nobody can put it into a frame."""
DOCS_HEADERS = PAGE_HEADERS | {
    "content-security-policy": PAGE_HEADERS["content-security-policy"].replace(
        "script-src 'self'", "script-src 'self' 'unsafe-inline'"
    )
}
"""Of /docs, which FastAPI writes with a script in it."""


QUIET = ("/v2/health/live", "/v2/health/ready", "/metrics")
"""What is asked every few seconds by programs; the log tells of it at the level debug only."""


class RequestMiddleware:
    """Echo or make ``x-request-id``, log, count and trace the request, and answer 500 in the usual form if a handler raises.

    Routes may put the number of rows of a request into ``request.state.rows``, the name of the model that it asks into
    ``request.state.model`` and when the engine did what into ``request.state.moments``; nothing else of its content is logged.
    Where ``request.state.is_traced``, they add what each iteration came to to ``request.state.steps``.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers, method = dict(reversed([*scope["headers"]])), scope["method"]  # of two of a name the first counts
        request_id = _id_of(headers)
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if any(name == b"content-type" and value.startswith(b"text/html") for name, value in answered):
                    page = DOCS_HEADERS if scope["path"].startswith("/docs") else PAGE_HEADERS
                    MutableHeaders(raw=answered).update(page)
            await send(message)

        tracing = self._server.tracing
        trace = tracing.begin(Headers(scope=scope)) if tracing else None
        trace_id = trace.id if trace else _trace_of(headers)
        if trace:
            scope.setdefault("state", {}).update(is_traced=trace.is_sampled, steps=[])
        structlog.contextvars.clear_contextvars()  # a pipelined request inherits those of the one before
        structlog.contextvars.bind_contextvars(request_id=request_id, **({"trace_id": trace_id} if trace_id else {}))
        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # uvicorn does that to what is still in flight when the time to shut down is over
            if status is None:
                await respond(unavailable("server: it is shutting down"))(scope, receive, send_with_id)
        except Exception:
            log.exception("a bug: the request was not handled")
            if status is None:
                await respond(Refusal(500, "server: an unexpected error, see its log"))(scope, receive, send_with_id)
        finally:
            # Unknown paths share one label, or clients could make up labels without end.
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - began
            state = scope.get("state", {})
            model, rows = state.get("model", ""), state.get("rows")
            self._server.measures.count_request(model, method, route, str(status), seconds)
            tell = log.debug if route in QUIET else log.info
            tell("request", method=method, route=route, model=model, status=status, rows=rows, ms=round(seconds * 1e3, 2))
            if tracing and trace:
                facts = {"http.request.method": method, "http.route": route, "http.response.status_code": status or 0}
                own = {"jfb.model": model, "jfb.rows": rows or 0, "jfb.request_id": request_id}
                tracing.end(trace, f"{method} {route}", facts | own, state.get("moments"), state.get("steps", ()))


def _id_of(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if 0 < len(given) <= 128 and given.isascii() and given.isprintable() else os.urandom(16).hex()


def _trace_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The trace id of a W3C ``traceparent``."""
    given = headers.get(b"traceparent")
    if given is None:
        return None
    match = re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", given.decode("latin-1"))
    return match[1] if match and match[1].strip("0") else None
