"""Errors as clients see them: a status, and ``{"error": "<field>: must be ... (got ...)"}``."""

import math
from collections.abc import Mapping

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.engine_client.errors import EngineError, LoadFailed, ModelNotFound, NoDefaultModel, QueueFull, RequestFailed

log = structlog.get_logger(__name__)


class ApiError(HTTPException):
    """A request that is answered with an error: a status of 4xx or 5xx, and ``<field>: must be ... (got ...)``."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        # JSON lets unpaired surrogates through, UTF-8 does not.
        super().__init__(status, message.encode(errors="replace").decode(), headers)


INTERNAL_ERROR = ApiError(500, "server: internal error (see its log)")


def invalid(field: str, requirement: str, got: object) -> ApiError:
    """The usual error, 422: ``<field>: must be <requirement> (got <value>)``."""
    return ApiError(422, f"{field}: must be {requirement} (got {shown(got)})")


def unavailable(message: str) -> ApiError:
    """503: the request may be repeated soon."""
    return ApiError(503, message, {"retry-after": "1"})


def shown(value: object) -> str:
    """A client's value as JSON writes it (NaN and infinities as JavaScript does), cut if it is long."""
    if isinstance(value, list | dict) and len(value) > 8:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)} entries"
    try:
        if isinstance(value, float) and not math.isfinite(value):
            text = "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
        else:
            text = msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, TypeError, ValueError):
        text = "a value that cannot be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."


def encode_error(error: ApiError) -> bytes:
    """The body of an error response."""
    return msgspec.json.encode({"error": error.detail})


def error_response(error: ApiError) -> Response:
    return Response(encode_error(error), error.status_code, error.headers, "application/json")


def engine_error(error: EngineError) -> ApiError:
    """What a client is answered if the engine could not answer its request."""
    match error:
        case ModelNotFound():
            return ApiError(404, str(error))
        case NoDefaultModel():
            return ApiError(400, str(error))
        case LoadFailed():
            return ApiError(400, f"model: {error}")
        case QueueFull():
            return ApiError(429, f"queue: {error}", {"retry-after": str(max(1, math.ceil(error.retry_after)))})
        case RequestFailed():
            log.error("request failed in the engine", reason=error.reason)
            return ApiError(500, f"engine: these rows could not be computed: {error.reason}")
        case _:
            return unavailable(f"engine: {error}")


async def respond(request: Request, error: Exception) -> Response:
    """The response to an error of the kinds that are handled; every error of an application has the same form."""
    match error:
        case ClientDisconnect():
            return Response(status_code=499)  # nginx's convention: logged, never sent
        case EngineError():
            error = engine_error(error)
        case RequestValidationError():
            error = _validation_error(error)
        case HTTPException() if not isinstance(error, ApiError):
            error = _http_error(request, error)
        case _ if not isinstance(error, ApiError):
            error = INTERNAL_ERROR
    assert isinstance(error, ApiError)
    if error.status_code == 422 and getattr(request.scope.get("route"), "path", "").startswith("/v2"):
        error.status_code = 400  # the Open Inference Protocol has no 422
    return error_response(error)


def install(app: FastAPI) -> None:
    """Answer every error with ``respond``, also those that FastAPI and Starlette raise."""
    for kind in (ApiError, HTTPException, RequestValidationError, EngineError, ClientDisconnect):
        app.add_exception_handler(kind, respond)
    app.add_exception_handler(Exception, respond)


def _http_error(request: Request, error: HTTPException) -> ApiError:
    message = f"request: {error.detail}"
    if error.status_code == 404:
        message = f"not found: {request.url.path[:80]} (see /docs for the routes)"
    elif error.status_code == 405:
        message = f"method: must be {(error.headers or {}).get('Allow', 'another')} (got {request.method})"
    return ApiError(error.status_code, message, error.headers)


def _validation_error(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"body: must be JSON ({first['ctx']['error']})")
    field = ".".join(str(part) for part in first["loc"][1:]) or "body"
    message = first["msg"].replace("Input should be", "must be")
    return ApiError(422, f"{field}: {message} (got {shown(first.get('input'))})")
