"""Limits of a request's head, with internals of uvicorn 0.54: pyproject.toml bounds its version, a test fails if they move."""

import asyncio
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.errors import ApiError, encode_error

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and its headers."""


class _LingeringTransport:
    """A transport whose ``close`` waits for the end of a request: a reset would overtake the response (RFC 9112, section 9.6)."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self.receiving = False  # whether more of a request is to come; the protocol sets it
        self.lingering = False  # whether what arrives must be discarded
        self._transport = transport
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self.lingering:
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self.lingering or self._transport.is_closing()

    def close(self) -> None:  # the second call closes at once
        if self.receiving and not self.is_closing():
            self.lingering = True
            self._transport.write_eof()
            self._transport.resume_reading()
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        else:
            if self._timer is not None:
                self._timer.cancel()
            self._transport.close()


class BoundedConnection(HttpToolsProtocol):
    """A connection whose heads, and unread bodies, have a time limit, and heads a size limit; late ones are answered first."""

    seconds: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._transport = _LingeringTransport(transport, self.seconds)
        self.transport = cast("asyncio.Transport", self._transport)
        self._head_bytes = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._transport.receiving = False
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._transport.lingering:
            return
        was_in_head = self._in_head  # else the data starts with the rest of a body, which may be of any size
        super().data_received(data)
        if was_in_head and self._in_head and not self._transport.lingering:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._reject(ApiError(431, f"head: must have at most {MAX_HEAD_BYTES} bytes (got more)"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._transport.receiving = self._in_head = True
        self._head_bytes = 0
        self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._transport.receiving = False
        self._stop_timer()
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:  # answered by its head; uvicorn would wait for ever now
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        unread = self._transport.receiving and not self._in_head
        if unread and not self.transport.is_closing() and self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self._start_timer()  # for the rest of an unread body

    def shutdown(self) -> None:
        if self._in_head:
            self._transport.receiving = False  # nothing was answered, so nothing can be lost
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._reject(ApiError(400, "request: must be HTTP/1.1 (got something else)"))

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.seconds, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # the previous request is answered first
            self._start_timer()
        elif self._transport.receiving and self._in_head:
            self._reject(ApiError(408, f"head: must arrive within {self.seconds:g} s (got a part of it)"))
        else:
            self._transport.receiving = False
            self.transport.close()

    def _reject(self, error: ApiError) -> None:
        self._stop_timer()
        self._transport.receiving = True
        content = encode_error(error)
        status = f"{error.status_code} {HTTPStatus(error.status_code).phrase}"
        headers = f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close"
        self.transport.write(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + content)
        self.transport.close()


def bounded_connections(seconds: float) -> type[BoundedConnection]:
    """The protocol class for ``uvicorn.Config`` whose heads must arrive within some seconds."""
    return type("BoundedConnection", (BoundedConnection,), {"seconds": seconds})
