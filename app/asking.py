"""Asking the engine on behalf of a request: not longer than its client waits, and always of the models of now."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from app.catalogue import Model
from app.engine.client import Computed, Iteration
from app.engine.errors import NotServed
from app.errors import Refusal
from app.inputs import Rows
from app.server import Server
from app.streaming import EventStream
from app.tracing import MOST_EVENTS, Step
from app.work import Work

MOST_ATTEMPTS = 5
"""A model is not expected to be exchanged more often in the course of one request."""

Result = TypeVar("Result")


async def compute(request: Request, server: Server, model: Model, work: Work, arrived: float) -> Computed:
    """Have the engine compute a request's rows, and drop them as soon as the client has closed the connection.

    Args:
        arrived: when the request did, in seconds of ``time.monotonic()``.

    Raises:
        Refusal: 504 if no row had an iteration before its deadline.
        ClientDisconnect: if the client went first.
        EngineError: as ``EngineClient.predict``.
    """
    rows = _rows(request, model, work, arrived)
    if getattr(request.state, "is_traced", False):
        watching = server.engine.client.watch(*rows, fingerprint=model.fingerprint, session=work.session)
        computed = await _unless_gone(request, _followed(request, watching))
    else:
        computing = server.engine.client.predict(*rows, fingerprint=model.fingerprint, session=work.session)
        computed = await _unless_gone(request, computing)
    _count(request, server, model, computed)
    return _in_time(computed)


async def watch(request: Request, server: Server, model: Model, work: Work, arrived: float) -> EventStream:
    """The same, as events that tell of each iteration."""
    watching = server.engine.client.watch(
        *_rows(request, model, work, arrived), fingerprint=model.fingerprint, session=work.session
    )
    watching = _counted(request, server, model, watching)
    first = await _unless_gone(request, anext(watching))
    if isinstance(first, Computed):
        _in_time(first)
    return EventStream(model, first, watching)


def _rows(
    request: Request, model: Model, work: Work, arrived: float
) -> tuple[str, int, Rows, list[float], list[int], list[float | None]]:
    request.state.rows = len(work.inputs)
    limits = work.parameters
    deadline = [None if limit is None else arrived + limit / 1000 for limit in limits.deadline_ms]
    return model.name, model.version, work.inputs, limits.tolerance, limits.max_iterations, deadline


async def _counted(
    request: Request, server: Server, model: Model, watching: AsyncGenerator[Iteration | Computed, None]
) -> AsyncGenerator[Iteration | Computed, None]:
    async with aclosing(watching):
        async for event in watching:
            if isinstance(event, Computed):
                _count(request, server, model, event)
            else:
                _note(request, event)
            yield event


async def _followed(request: Request, watching: AsyncGenerator[Iteration | Computed, None]) -> Computed:
    """The answer of a request whose trace shall tell of each iteration."""
    async with aclosing(watching):
        async for event in watching:
            if isinstance(event, Computed):
                return event
            _note(request, event)
    raise AssertionError("the answer comes last")


def _note(request: Request, event: Iteration) -> None:
    if getattr(request.state, "is_traced", False) and len(request.state.steps) < MOST_EVENTS:
        request.state.steps.append(Step(time.monotonic(), max(event.iterations), max(event.residual), len(event.rows)))


def _count(request: Request, server: Server, model: Model, computed: Computed) -> None:
    request.state.moments = computed.moments
    server.measures.count_rows(model, computed)


def _in_time(computed: Computed) -> Computed:
    if not any(computed.iterations):
        raise Refusal(504, "deadline_ms: expected time for one iteration at least, got none before the deadline of any row")
    return computed


async def while_models_change(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Make an attempt, which finds a model in the catalogue and asks the engine for it; again if that was outdated.

    When the engine says that it does not serve what it was asked for, the catalogue has already become that of now. So a
    model that was exchanged is found anew, and read for anew, as its inputs may be others; one that is gone is a 404.

    Raises:
        NotServed: if it happened too often.
    """
    for _ in range(MOST_ATTEMPTS - 1):
        try:
            return await attempt()
        except NotServed:
            continue
    return await attempt()


async def _unless_gone(request: Request, computing: Coroutine[Any, Any, Result]) -> Result:
    result = asyncio.create_task(computing)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnect
        return result.result()
    finally:
        result.cancel()
        gone.cancel()
        await asyncio.gather(result, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
