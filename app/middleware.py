"""Around every request: an id, one line in the log, one count in the metrics, and an answer even to a bug."""

import asyncio
import time
import uuid

import structlog
from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Refusal, respond, unavailable

log = structlog.get_logger(__name__)


class RequestMiddleware:
    """Echo or make ``x-request-id``, log and count the request, and answer 500 in the usual form if a handler raises.

    Routes may put the number of rows of a request into ``request.state.rows``; nothing else of its content is logged.
    """

    def __init__(self, app: ASGIApp, metrics: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter("jfb_http_requests", "Requests answered.", ["method", "route", "status"], registry=metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _id_of(Headers(scope=scope))
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
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
            method = scope["method"]
            self._requests.labels(method, route, str(status)).inc()
            milliseconds = round((time.perf_counter() - began) * 1e3, 2)
            rows = scope.get("state", {}).get("rows")
            log.info("request", method=method, route=route, status=status, rows=rows, ms=milliseconds)
            structlog.contextvars.clear_contextvars()


def _id_of(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if 0 < len(given) <= 128 and given.isascii() and given.isprintable() else uuid.uuid4().hex
