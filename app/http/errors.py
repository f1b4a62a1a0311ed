"""Errors as clients see them: a status, and ``{"error": "<field>: expected ..., got ..."}``."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.engine_client.errors import EngineError, LoadFailed, NotServed, QueueFull, RequestFailed
from app.schemas.native import Error

log = structlog.get_logger(__name__)

CLIENT_GONE = 499
"""The status that is logged when nobody waits for the answer any more (nginx's convention); it is never sent."""


class Refusal(Exception):  # noqa: N818 - the server is well; it is the request that is refused
    """A request that is answered with an error.

    Args:
        status: of HTTP, 4xx or 5xx.
        message: ``<field>: <what was expected>, got <value>``.
        headers: sent with it.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message.encode(errors="replace").decode()  # JSON lets half a surrogate pair through, UTF-8 does not
        self.headers = headers


def expected(field: str, what: str, got: object) -> Refusal:
    """The usual refusal, 422: a field whose value is not what it should be."""
    return Refusal(422, f"{field}: expected {what}, got {shown(got)}")


def unavailable(message: str) -> Refusal:
    """503: it is not the request that is wrong, and soon it can be answered."""
    return Refusal(503, message, {"retry-after": "1"})


def shown(value: object) -> str:
    """A client's value as JSON writes it (and NaN and infinities as JavaScript does), cut where it is long."""
    if isinstance(value, list | dict) and len(value) > 8:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)} entries"
    try:
        is_constant = isinstance(value, float) and not math.isfinite(value)
        text = json.dumps(value) if is_constant else msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, TypeError, ValueError):
        text = "a value that cannot be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."


def in_our_words(message: str) -> str:
    """Pydantic's "Input should be ..." as the "expected ..." of our own errors."""
    return message.replace("Input should be", "expected").removeprefix("Value error, ")


@contextmanager
def bad_requests_are_400() -> Iterator[None]:
    """For the routes of the Open Inference Protocol, which knows no 422."""
    try:
        yield
    except Refusal as refusal:
        if refusal.status != 422:
            raise
        raise Refusal(400, refusal.message, refusal.headers) from refusal


def encode(refusal: Refusal) -> bytes:
    """The body that carries a refusal."""
    return msgspec.json.encode(Error(refusal.message))


def respond(refusal: Refusal) -> Response:
    """The response that carries a refusal."""
    return Response(
        encode(refusal),
        refusal.status,
        headers=refusal.headers,
        media_type="application/json",
    )


def install(app: FastAPI) -> None:
    """Give every error the same form, also those that FastAPI and Starlette raise themselves."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return respond(error)

    async def not_routed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        match error.status_code:
            case 404:
                message = f"path: expected one that /docs lists, got {shown(request.url.path)}"
            case 405:
                allowed = (error.headers or {}).get("Allow", "another")
                message = f"method: expected {allowed}, got {request.method}"
            case _:
                message = f"request: {error.detail}"
        return respond(Refusal(error.status_code, message, error.headers))

    async def not_valid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return respond(Refusal(422, f"{first['loc'][-1]}: {in_our_words(first['msg'])}, got {shown(first.get('input'))}"))

    async def engine_failed(request: Request, error: Exception) -> Response:
        match error:
            case QueueFull():
                wait = {"retry-after": str(max(1, math.ceil(error.retry_after)))}
                return respond(Refusal(429, f"queue: {error}", wait))
            case LoadFailed():
                return respond(Refusal(422, f"model: {error}"))
            case NotServed():
                return respond(unavailable(f"engine: {error}"))
            case RequestFailed():
                log.error("request failed in the engine", reason=error.reason)
                return respond(Refusal(500, f"engine: these rows could not be computed: {error.reason}"))
            case _:
                return respond(unavailable(f"engine: {error}; it is being restarted"))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(EngineError, engine_failed)
    app.add_exception_handler(HTTPException, not_routed)
    app.add_exception_handler(RequestValidationError, not_valid)
    app.add_exception_handler(ClientDisconnect, gone)
