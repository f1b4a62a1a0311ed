"""Closing a connection without losing the answer that was just written to it."""

import asyncio
from typing import Any


class Lingering:
    """A transport whose ``close`` waits for the client, where a part of its request is still on the way.

    A socket that is closed while bytes for it arrive resets the connection, and the reset overtakes the answer: the client is
    told that its connection broke, and not why (RFC 9112, 9.6). So the server ends its own direction, throws away what still
    comes, and closes when the client does, or when its time is over.

    Args:
        transport: that is written to.
        seconds: of that time.

    Attributes:
        is_arriving: whether more of a request is to come; who receives it says so.
        lingers: whether what is received shall be thrown away.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self.is_arriving = False
        self.lingers = False
        self._transport = transport
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, unless the connection has been ended."""
        if not self.lingers:
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """End the connection; once more, and it is ended at once."""
        if self.is_arriving and not self.is_closing():
            self.lingers = True
            self._transport.write_eof()  # the client reads to the end of the answer, and finds it there
            self._transport.resume_reading()
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        else:
            if self._timer is not None:
                self._timer.cancel()
            self._transport.close()
