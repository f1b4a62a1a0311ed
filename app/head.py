"""The head of a request: uvicorn waits for its end for ever and keeps whatever arrives in the meantime; here it does not."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import Refusal, encode

MOST_BYTES = 64 * 1024
"""That a request line and its headers may have."""


class BoundedHeads(HttpToolsProtocol):
    """A connection on which each head has a time to arrive in, and a size; ``arriving_within`` makes one of a given time.

    A connection that brings nothing at all is closed after that time; a head that is late or too long is answered first.
    """

    seconds: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        within_head = self._timer is not None  # else it begins with the rest of a body, which may be of any size
        super().data_received(data)
        if within_head and self._timer is not None:
            self._bytes += len(data)
            if self._bytes > MOST_BYTES:
                self._refuse(Refusal(431, f"head: expected at most {MOST_BYTES} bytes, got more"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stop_waiting()
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:  # answered by its head; uvicorn would wait for ever now
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(self.seconds, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._bytes = 0

    def _late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # the answer to the request before goes first
            self._wait_for_head()
        elif self._bytes:
            self._refuse(Refusal(408, f"head: expected all of it within {self.seconds:g} s, got {self._bytes} bytes"))
        else:
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        self._stop_waiting()
        content = encode(refusal)
        reason = {408: "Request Timeout", 431: "Request Header Fields Too Large"}[refusal.status]
        head = f"HTTP/1.1 {refusal.status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + content)
        self.transport.close()


def arriving_within(seconds: float) -> type[BoundedHeads]:
    """The protocol for ``uvicorn.Config``."""
    return type("BoundedHeadsWithin", (BoundedHeads,), {"seconds": seconds})
