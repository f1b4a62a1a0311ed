"""Reads of the model store: a slow disk must delay neither the event loop nor what else runs in threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.http.errors import unavailable

MAX_READS = 4
READ_SECONDS = 5.0

Value = TypeVar("Value")
_THREADS = ThreadPoolExecutor(MAX_READS, "store")


async def read_store(read: Callable[[], Value]) -> Value:
    """Call a function that reads the model store; an ``ApiError`` (503) if that takes too long.

    A thread that waits for a disk cannot be ended, so processes that call this end with ``os._exit``.
    """
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(_THREADS, read)
    except TimeoutError:
        raise unavailable(f"model store: must answer within {READ_SECONDS:g} s (it did not)") from None
