"""Lifeline: what a supervised process and its supervisor tell each other.

It is one socket, the child's standard input. The supervisor writes one line, the child's configuration as JSON. The child writes
a byte when it is ready, and one every second from its main loop, so that a hang is noticed. When either process ends, however
that happens, the other one reads the end of the stream.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

READY, ALIVE = b"R", b"A"
HEARTBEAT_SECONDS = 1.0


class Lifeline:
    """The child's end; ``config`` is JSON, as the supervisor wrote it."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        with self._socket.makefile(encoding="utf-8") as stream:
            self.config = stream.readline()
        if not self.config.endswith("\n"):
            raise SystemExit("the supervisor exited before it sent a configuration")

    def report_ready(self) -> None:
        """Tell the supervisor that this process serves."""
        self._write(READY)

    def beat(self) -> None:
        """Tell the supervisor that the main loop runs; call it every ``HEARTBEAT_SECONDS``."""
        self._write(ALIVE)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat from a thread while the main loop does not run yet; each part of what is done has a time limit of its own."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                self.beat()

        threading.Thread(target=beat, name="heartbeat", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def on_parent_exit(self, react: Callable[[], None]) -> None:
        """Call ``react``, in a thread of its own, when the supervisor has exited."""

        def wait_for_end() -> None:
            with suppress(OSError):
                while self._socket.recv(4096):
                    pass
            react()

        threading.Thread(target=wait_for_end, name="lifeline", daemon=True).start()

    def _write(self, byte: bytes) -> None:
        with suppress(OSError):  # a supervisor that does not read is about to kill this process
            self._socket.send(byte, socket.MSG_DONTWAIT)
