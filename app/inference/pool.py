"""Pools of threads, for work on what clients send that would hold up the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from threading import Event
from typing import Any, Generic, TypeVar

from app.http.errors import unavailable

Value = TypeVar("Value")
THREADS = 2
MAX_WAITING = 64
"""Of tasks in a pool; the largest of more is answered 503."""


@dataclass(order=True)
class _Task(Generic[Value]):
    cost: float
    number: int
    function: Callable[[Event], Value] = field(compare=False)
    future: asyncio.Future[Value] = field(compare=False)
    cancelled: Event = field(default_factory=Event, compare=False)


class Pool:
    """Threads that take the smallest task first, and large ones one at a time, so that a small task never waits for long.

    Args:
        large: the cost above which a task is large.
    """

    def __init__(self, name: str, large: float) -> None:
        self._name, self._large = name, large
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix=name)
        self._numbers = count()
        self._waiting: list[_Task[Any]] = []
        self._running = 0
        self._large_running = 0

    async def run(self, cost: float, function: Callable[[Event], Value]) -> Value:
        """Call a function in a thread; it gets an event that is set as soon as its result is not wanted any more.

        Cancelling this gives up the place in the queue. Raises an ``ApiError`` (503) if too much of lower cost is waiting.
        """
        task: _Task[Value] = _Task(cost, next(self._numbers), function, asyncio.get_running_loop().create_future())
        heappush(self._waiting, task)
        self._start()
        if len(self._waiting) > MAX_WAITING:
            largest = max(self._waiting)
            self._waiting.remove(largest)
            self._waiting.sort()
            largest.future.set_exception(unavailable(f"{self._name}: {MAX_WAITING} smaller ones wait already"))
        try:
            return await task.future
        finally:
            task.cancelled.set()
            if task in self._waiting:
                self._waiting.remove(task)
                self._waiting.sort()

    def _start(self) -> None:
        while self._waiting and self._running < THREADS:
            is_large = self._waiting[0].cost > self._large
            if is_large and self._large_running:
                return  # and all that wait are large
            task = heappop(self._waiting)
            self._running += 1
            self._large_running += is_large
            work = asyncio.get_running_loop().run_in_executor(self._executor, task.function, task.cancelled)
            work.add_done_callback(lambda work, task=task, is_large=is_large: self._end(task, work, is_large))  # type: ignore[misc]

    def _end(self, task: _Task[Any], work: asyncio.Future[Any], is_large: bool) -> None:
        self._running -= 1
        self._large_running -= is_large
        error = work.exception()
        if not task.future.done():
            if error is None:
                task.future.set_result(work.result())
            else:
                task.future.set_exception(error)
        self._start()


BODIES = Pool("bodies", 4 * 1024 * 1024)
"""Parses and checks bodies; the cost is in bytes."""
IMAGES = Pool("images", 4 * 1024 * 1024)
"""Decodes images; the cost is in pixels."""
