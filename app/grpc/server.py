"""gRPC: the Open Inference Protocol once more, each RPC answered by the application as the same request over HTTP.

So API keys, validation, limits, metrics, the log and cancellation are those of HTTP. Needs the extra ``grpc``.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import structlog
from starlette.types import ASGIApp, Message

from app.grpc import messages
from app.http.errors import ApiError
from app.inference.numbers import MAX_INLINE_BYTES
from app.inference.pool import BODIES
from app.settings import Settings

log = structlog.get_logger(__name__)

STOP_SECONDS = 4.0
"""What RPCs in flight may take once the worker's HTTP requests have ended; the supervisor kills it a second later."""
OVERHEAD_BYTES = 64 * 1024
"""By which a message may exceed the limit of bodies, so that an error that names the limit can answer."""
FORWARDED = ("authorization", "x-request-id", "traceparent", "tracestate")
"""Metadata that become headers."""
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@asynccontextmanager
async def grpc_server(app: ASGIApp, settings: Settings) -> AsyncIterator[None]:
    """Serve an application's protocol on ``grpc_port``, which the server's HTTP workers share."""
    service = _Service(app)
    unary = {name: grpc.unary_unary_rpc_method_handler(partial(service.answer, name)) for name in messages.RPCS}
    absent = {name: grpc.unary_unary_rpc_method_handler(partial(_refuse, name)) for name in messages.NOT_OFFERED}
    stream = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(service.answer_stream)}
    options = [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_body_bytes + OVERHEAD_BYTES),
        ("grpc.max_send_message_length", -1),
    ]
    handler = grpc.method_handlers_generic_handler(messages.SERVICE, unary | absent | stream)
    server = grpc.aio.server(handlers=[handler], options=options)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    server.add_insecure_port(f"{host}:{settings.grpc_port}")
    await server.start()
    log.info("gRPC server listening", host=settings.host, port=settings.grpc_port)
    try:
        yield
    finally:
        await server.stop(STOP_SECONDS)


@dataclass
class _Answer:
    """What the application answers over HTTP."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class _Service:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def answer(self, rpc: str, content: bytes, context: Any) -> bytes:
        """One response to one request."""
        try:
            response: bytes = (await self._response(rpc, content, context)).SerializeToString()
        except ApiError as error:
            trailing = tuple((error.headers or {}).items())
            await context.abort(CODES.get(error.status_code, grpc.StatusCode.UNKNOWN), error.detail, trailing)
        return response

    async def answer_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """A response to each ``ModelInfer`` request in turn; an error is a response too."""
        async for content in requests:
            try:
                response = messages.stream_response(infer_response=await self._response("ModelInfer", content, context))
            except ApiError as error:
                response = messages.stream_response(error_message=error.detail)
            yield response.SerializeToString()

    async def _response(self, rpc: str, content: bytes, context: Any) -> Any:
        spec, message = messages.RPCS[rpc], messages.decode(rpc, content)
        path = spec.path(message)
        body: tuple[bytes, dict[str, str]] | ApiError = (b"", {})
        if spec.body is not None:
            make = partial(spec.body, message)
            try:
                body = make() if len(content) <= MAX_INLINE_BYTES else await BODIES.run(len(content), lambda _: make())
            except ApiError as error:
                body = error
        answer = await self._ask("GET" if spec.body is None else "POST", path, body, context)
        if answer.status in spec.not_ready:
            answer.status, answer.body = 200, b'{"ready": false}'
        passed_on = {name: value for name, value in answer.headers.items() if name in ("x-request-id", "retry-after")}
        if answer.status != 200:
            detail = json.loads(answer.body)["error"] if answer.body else "client: disconnected"
            raise ApiError(answer.status, detail, passed_on)
        context.set_trailing_metadata(tuple(passed_on.items()))
        return messages.encode(rpc, answer.body, answer.headers)

    async def _ask(self, method: str, path: str, body: tuple[bytes, dict[str, str]] | ApiError, context: Any) -> _Answer:
        """Have the application answer a request; it sees that the client disconnects when the RPC is cancelled."""
        metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        headers = {name: metadata[name] for name in FORWARDED if name in metadata}
        if "x-api-key" in metadata:
            headers.setdefault("authorization", f"Bearer {metadata['x-api-key']}")
        if not isinstance(body, ApiError):
            headers |= {**body[1], "content-length": str(len(body[0]))}
        host, _, port = unquote(context.peer()).partition(":")[2].rpartition(":")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "2",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()],
            "client": (host.strip("[]"), int(port)) if port.isdigit() else None,
            "server": None,
        }
        answer, parts, disconnected, received = _Answer(), list[bytes](), asyncio.Event(), False

        async def receive() -> Message:
            nonlocal received
            if received:
                await disconnected.wait()
                return {"type": "http.disconnect"}
            received = True
            if isinstance(body, ApiError):
                raise body
            return {"type": "http.request", "body": body[0]}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            else:
                parts.append(message.get("body", b""))

        task = asyncio.ensure_future(self._app(scope, receive, send))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            disconnected.set()
            await task  # it drops the rows, logs and counts the request
            raise
        answer.body = b"".join(parts)
        return answer


async def _refuse(rpc: str, _: bytes, context: Any) -> bytes:
    offered = ", ".join([*messages.RPCS, "ModelStreamInfer"])
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{rpc}: not offered by this server (offered: {offered})")
    return b""
