"""Asking the engine on behalf of a request: not longer than its client waits, and always of the models of now."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from app.engine_client.catalogue import Model
from app.engine_client.client import Computed, Iteration
from app.engine_client.errors import NotServed
from app.engine_client.messages import Question
from app.http.errors import Refusal
from app.http.state import Server
from app.inference.decoding import Work
from app.inference.stream import EventStream
from app.observability.tracing import MOST_EVENTS, Step

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
    question = _question(request, model, work, arrived)
    if getattr(request.state, "is_traced", False):
        computed = await _unless_gone(request, _followed(request, server.engine.client.watch(question, work.inputs)))
    else:
        computed = await _unless_gone(request, server.engine.client.predict(question, work.inputs))
    _count(request, server, model, computed)
    return _in_time(computed)


async def watch(request: Request, server: Server, model: Model, work: Work, arrived: float) -> EventStream:
    """The same, as events that tell of each iteration."""
    watching = server.engine.client.watch(_question(request, model, work, arrived), work.inputs)
    watching = _counted(request, server, model, watching)
    first = await _unless_gone(request, anext(watching))
    if isinstance(first, Computed):
        _in_time(first)
    return EventStream(model, first, watching)


def _question(request: Request, model: Model, work: Work, arrived: float) -> Question:
    request.state.rows = len(work.inputs)
    asked = work.parameters
    return Question(
        model.name,
        model.version,
        asked.tolerance,
        asked.max_iterations,
        [None if limit is None else arrived + limit / 1000 for limit in asked.deadline_ms],
        fingerprint=model.fingerprint,
        solver=asked.solver,
        stop=asked.stop,
        session=work.session,
    )


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
    # As asyncio.timeout does it, with a client that goes in place of time that passes: no task for what is computed.
    task = asyncio.current_task()
    assert task is not None
    waits, has_gone = True, False

    def stop(_: object) -> None:
        nonlocal has_gone
        if waits:
            has_gone = True
            task.cancel()

    gone = asyncio.create_task(_disconnected(request))
    gone.add_done_callback(stop)
    try:
        return await computing
    except asyncio.CancelledError:
        if has_gone and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        waits = False
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
