"""Ports for servers that are started by the number of theirs."""

import random
import socket
from contextlib import suppress

FIRST_OF_CLIENTS = 32_768
"""Linux gives clients ports from here on, and one of them could be taken between its choice and its use."""


def free_port() -> int:
    """A port that no program listens on."""
    numbers = random.SystemRandom()  # Hypothesis seeds the others
    while True:
        port = numbers.randrange(10_000, FIRST_OF_CLIENTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
