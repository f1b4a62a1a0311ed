"""The pool: the smallest task goes first, large ones one at a time, and what is not wanted any more gives up its place."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from app.http.errors import ApiError
from app.inference.pool import MAX_WAITING, THREADS, Pool


def held(release: threading.Event, order: list[int], number: int) -> Callable[[threading.Event], int]:
    """A task that waits until it is released."""

    def work(_: threading.Event) -> int:
        assert release.wait(20)
        order.append(number)
        return number

    return work


async def start(*tasks: asyncio.Task[int]) -> None:
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


def test_the_smallest_goes_first_and_a_large_one_leaves_a_thread_to_the_small() -> None:
    async def run() -> list[int]:
        pool, release, order = Pool("test", large=10), threading.Event(), list[int]()
        large = [asyncio.create_task(pool.run(cost, held(release, order, cost))) for cost in (100, 50, 70)]
        await start(*large)
        assert await asyncio.wait_for(pool.run(1, lambda _: 1), 20) == 1  # while a large one is running
        release.set()
        assert await asyncio.gather(*large) == [100, 50, 70]
        return order

    assert asyncio.run(run()) == [100, 50, 70]


def test_a_task_that_is_cancelled_gives_up_its_place_or_is_asked_to_end() -> None:
    async def run() -> None:
        pool, release, order, ended = Pool("test", large=10), threading.Event(), list[int](), threading.Event()

        def work(cancelled: threading.Event) -> int:
            assert cancelled.wait(20)
            ended.set()
            return 0

        running = asyncio.create_task(pool.run(50, work))
        waiting = asyncio.create_task(pool.run(20, held(release, order, 20)))
        last = asyncio.create_task(pool.run(30, held(release, order, 30)))
        await start(running, waiting, last)
        waiting.cancel()
        running.cancel()
        release.set()
        assert await asyncio.wait_for(last, 20) == 30
        assert ended.is_set()
        assert order == [30]

    asyncio.run(run())


def test_the_largest_of_too_many_is_503() -> None:
    async def run() -> None:
        pool, release, order = Pool("test", large=1000), threading.Event(), list[int]()
        count = THREADS + MAX_WAITING
        tasks = [asyncio.create_task(pool.run(cost, held(release, order, cost))) for cost in range(count)]
        await start(*tasks)
        assert len(order) == 0
        more = asyncio.create_task(pool.run(5, held(release, order, 5)))
        with pytest.raises(ApiError, match="test: 64 smaller ones wait already") as error:
            await tasks[-1]
        assert error.value.status_code == 503
        release.set()
        assert await more == 5
        assert await asyncio.gather(*tasks[:-1]) == list(range(count - 1))

    asyncio.run(run())


def test_what_a_task_raises_is_raised() -> None:
    def fail(_: threading.Event) -> int:
        raise ApiError(422, "field: must be x (got y)")

    with pytest.raises(ApiError, match="field: must be x"):
        asyncio.run(Pool("test", large=10).run(1, fail))
