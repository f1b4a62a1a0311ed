"""Limits of a connection, with internals of uvicorn 0.54: pyproject.toml bounds its version, a test fails if they move."""

import asyncio
import select
import socket
import struct
import sys
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.errors import ApiError, encode_error

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and its headers, of the trailers of a chunked body, and of what is between two pieces of that body."""
MAX_HEADERS = 128
"""Of one request, its trailers included."""
MIN_BYTES_PER_SECOND = 1024
"""A client that reads a response more slowly is disconnected."""
FED_BYTES = 16 * 1024
"""What the parser gets at once, so that a limit is exceeded by no more than that."""
MAX_UNSENT_BYTES = 256 * 1024
"""What the system holds of responses that a client has not read: it would take several megabytes of each connection."""
PROBE_SECONDS = 0.05
MAX_COALESCED_BYTES = 16 * 1024
"""What waits for the end of a turn of the event loop, at most."""


class _LingeringTransport:
    """A transport whose ``close`` waits for the end of a request: a reset would overtake the response (RFC 9112, section 9.6).

    It is aborted if its client does not read what has been written.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self.receiving = False  # whether more of a request is to come; the protocol sets it
        self.lingering = False  # whether what arrives must be discarded
        self._transport = transport
        self._seconds = seconds
        self._unwritten = bytearray()
        self._flushing: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reading_timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write with what else this turn of the event loop writes: head and body of a response are one packet, and wake once."""
        if self.lingering:
            return
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self.flush)
        self._unwritten += data
        if len(self._unwritten) > MAX_COALESCED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write at once what waits for the end of the turn."""
        if self._flushing is None:
            return
        self._flushing.cancel()
        data, self._unwritten, self._flushing = self._unwritten, bytearray(), None
        if not self._transport.is_closing():
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self.lingering or self._transport.is_closing()

    def close(self) -> None:  # the second call closes at once
        self.flush()
        if self.receiving and not self.is_closing():
            self.lingering = True
            self._transport.write_eof()
            self._transport.resume_reading()
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        else:
            if self._timer is not None:
                self._timer.cancel()
            self._transport.close()
            self.expect_reading()

    def expect_reading(self) -> None:
        """Abort unless the client reads what waits to be sent."""
        self.stop_expecting()
        unsent = self._transport.get_write_buffer_size()
        if unsent:
            self._reading_timer = asyncio.get_running_loop().call_later(self._seconds, self._check_reading, unsent)

    def stop_expecting(self) -> None:
        if self._reading_timer is not None:
            self._reading_timer.cancel()
            self._reading_timer = None

    def _check_reading(self, unsent_before: int) -> None:
        if unsent_before - self._transport.get_write_buffer_size() < MIN_BYTES_PER_SECOND * self._seconds:
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # or the system goes on sending
            self._transport.abort()
        else:
            self.expect_reading()


class BoundedConnection(HttpToolsProtocol):
    """A connection with limits on the time and size of heads and trailers, and on the time of unread bodies and responses.

    A request beyond a limit is answered first. A client that has sent its request may close its side and still gets the answer.
    It is in the ``scope`` of its requests as ``connection``.

    Attributes:
        left: done when the connection is lost.
    """

    seconds: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.left: asyncio.Future[None] = self.loop.create_future()
        self._transport = _LingeringTransport(transport, self.seconds)
        self.transport = cast("asyncio.Transport", self._transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_UNSENT_BYTES)
        self._overhead_bytes = 0  # since the message began, or since the last piece of its body
        self._headers = 0
        self._in_head = True
        self._rejected = False
        self._timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._transport.stop_expecting()
        self._transport.receiving = False
        if self._probe is not None:
            self._probe.cancel()
        super().connection_lost(exc)
        self.left.set_result(None)

    @property
    def receiving(self) -> bool:
        """Whether more of a request is to come."""
        return self._transport.receiving

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), FED_BYTES):
            if self._rejected or self.transport.is_closing():
                return
            self._progressed = False
            fed = data[start : start + FED_BYTES]
            super().data_received(fed)
            self._overhead_bytes = 0 if self._progressed else self._overhead_bytes + len(fed)
            if self._overhead_bytes > MAX_HEAD_BYTES and not self._rejected:
                part = "head" if self._in_head else "trailers"
                self._reject(ApiError(431, f"{part}: must have at most {MAX_HEAD_BYTES} bytes (got more)"))
        if self._in_head and self._transport.receiving and self._timer is None and not self._rejected:
            self._start_timer()  # for the rest of the head

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection until its requests are answered, if the last of them has arrived whole."""
        self._transport.flush()
        if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
            return None
        self.cycle.keep_alive = False
        self._transport.receiving = False
        # A client that has left looks the same until it is sent something: then its system resets the connection.
        if not (self.pipeline or self.cycle.response_started) and self.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._look_for_reset()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._transport.expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._transport.is_closing():
            self._transport.stop_expecting()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._transport.receiving = self._in_head = True
        self._headers = 0
        self._stop_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        if self._headers > MAX_HEADERS:
            raise ApiError(431, f"headers: must be at most {MAX_HEADERS} (got more)")
        if self._in_head:  # trailers are dropped: they must not pass for headers (RFC 9110, section 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._progressed = True
        self._check_head()
        cast("dict[str, Any]", self.scope)["connection"] = self
        super().on_headers_complete()
        self._in_head = False
        self._stop_timer()

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progressed = True
        self._transport.receiving = False
        self._stop_timer()
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:  # answered by its head; uvicorn would wait for ever now
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        self._transport.flush()  # before what a turn of the event loop does next: the log line, for example
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
        """Answer what the parser does not take, or what a callback has raised an ``ApiError`` for."""
        parser_error = sys.exception()
        cause = parser_error.__context__ if parser_error else None
        self._reject(cause if isinstance(cause, ApiError) else ApiError(400, "request: must be HTTP/1.1 (got something else)"))

    def _check_head(self) -> None:
        """Raise an ``ApiError`` where servers and proxies might disagree about what a request is (RFC 9112, 2.3, 3.2 and 6.1)."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise ApiError(505, f"request: must be HTTP/1.1 (got HTTP/{version})")
        hosts, codings = 0, []
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings.append(value.strip().lower())
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise ApiError(400, f"host: must be given once (got it {hosts} times)")
        if codings and (codings != [b"chunked"] or version == "1.0"):
            got = b", ".join(codings).decode("latin-1")[:80]
            raise ApiError(501, f"transfer-encoding: must be chunked, in HTTP/1.1 (got {got} in HTTP/{version})")

    def _look_for_reset(self) -> None:
        if self.transport.is_closing():
            return
        connection = select.poll()
        connection.register(self.transport.get_extra_info("socket").fileno(), 0)  # reports errors and hang-ups only
        if connection.poll(0):
            self.transport.abort()
        else:
            self._probe = self.loop.call_later(PROBE_SECONDS, self._look_for_reset)

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
            self.transport.close()  # waits for a body that is still sent: its response may not have been read

    def _reject(self, error: ApiError) -> None:
        """Answer the message that arrives, unless its response has started, and end the connection."""
        self._stop_timer()
        self._rejected = True
        is_new = self._in_head or not self._transport.receiving
        self._transport.receiving = True
        if self.cycle is not None and not self.cycle.response_complete and (is_new or self.pipeline):
            self.cycle.keep_alive = False  # closes the connection when the previous requests have been answered
            return
        if not is_new and self.cycle.response_started:
            self.transport.close()
            return
        content = encode_error(error)
        status = f"{error.status_code} {HTTPStatus(error.status_code).phrase}"
        headers = f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close"
        self.transport.write(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + content)
        self.transport.close()


def bounded_connections(seconds: float) -> type[BoundedConnection]:
    """The protocol class for ``uvicorn.Config`` whose heads must arrive within some seconds."""
    return type("BoundedConnection", (BoundedConnection,), {"seconds": seconds})
