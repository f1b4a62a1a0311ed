"""Lifeline: what a supervised process and its supervisor tell each other.

It is one socket, the child's standard input. The supervisor writes one line, the child's configuration as JSON. The child writes
a byte when it is ready, and one every second from its main loop, so that a hang is noticed. When either process ends, however
that happens, the other one reads the end of the stream.
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

READY, ALIVE = b"R", b"A"
HEARTBEAT_SECONDS = 1.0


class Lifeline:
    """The child's end.

    Attributes:
        config: JSON, as the supervisor wrote it.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        line = b""
        while not line.endswith(b"\n"):
            chunk = self._socket.recv(65536)
            if not chunk:
                raise SystemExit("the supervisor exited before it sent a configuration")
            line += chunk
        self.config = line.decode()

    def report_ready(self) -> None:
        """Tell the supervisor that this process serves."""
        self._write(READY)

    def beat(self) -> None:
        """Tell the supervisor that the main loop runs; call it every ``HEARTBEAT_SECONDS``."""
        self._write(ALIVE)

    def on_parent_exit(self, react: Callable[[], None]) -> None:
        """Call ``react``, in a thread of its own, when the supervisor has exited."""
        threading.Thread(target=self._wait_for_end, args=[react], name="lifeline", daemon=True).start()

    def _write(self, byte: bytes) -> None:
        with suppress(OSError):  # a supervisor that does not read has other troubles
            self._socket.send(byte, socket.MSG_DONTWAIT)

    def _wait_for_end(self, react: Callable[[], None]) -> None:
        with suppress(OSError):
            while self._socket.recv(4096):
                pass
        react()
