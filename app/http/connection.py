"""The head of a request: uvicorn waits for its end for ever and keeps whatever arrives in the meantime; here it does not."""

import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.errors import Refusal, encode
from app.http.lingering import Lingering

MOST_BYTES = 64 * 1024
"""That a request line and its headers may have."""


class BoundedHeads(HttpToolsProtocol):
    """A connection on which each head has a time to arrive in, and a size; ``arriving_within`` makes one of a given time.

    A connection that brings nothing at all is closed after that time; a head that is late, too long or none is answered first.
    A body that nobody waits for, because its request was answered by its head, has that time too. Answers that end a connection
    reach clients that are still sending.
    """

    seconds: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._lingering = Lingering(transport, self.seconds)
        self.transport = cast("asyncio.Transport", self._lingering)
        self._bytes = 0
        self._within_head = True
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._lingering.is_arriving = False
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering.lingers:
            return
        within_head = self._within_head  # else it begins with the rest of a body, which may be of any size
        super().data_received(data)
        if within_head and self._within_head and not self._lingering.lingers:
            self._bytes += len(data)
            if self._bytes > MOST_BYTES:
                self._refuse(Refusal(431, f"head: expected at most {MOST_BYTES} bytes, got more"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._lingering.is_arriving = self._within_head = True
        self._bytes = 0
        self._wait()

    def on_headers_complete(self) -> None:
        self._within_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._lingering.is_arriving = False
        self._stop_waiting()
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:  # answered by its head; uvicorn would wait for ever now
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._lingering.is_arriving and not self._within_head and self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self._wait()  # for the rest of a body that was not waited for

    def shutdown(self) -> None:
        if self._within_head:
            self._lingering.is_arriving = False  # nothing was answered, so nothing can be lost
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal(400, "request: expected HTTP/1.1, got something else"))

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.seconds, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # the answer to the request before goes first
            self._wait()
        elif self._lingering.is_arriving and self._within_head:
            self._refuse(Refusal(408, f"head: expected all of it within {self.seconds:g} s, got a part of it"))
        else:
            self._lingering.is_arriving = False  # it had its time, and its answer
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        self._stop_waiting()
        self._lingering.is_arriving = True
        content = encode(refusal)
        reason = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}[refusal.status]
        head = f"HTTP/1.1 {refusal.status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + content)
        self.transport.close()


def arriving_within(seconds: float) -> type[BoundedHeads]:
    """The protocol for ``uvicorn.Config``."""
    return type("BoundedHeadsWithin", (BoundedHeads,), {"seconds": seconds})
