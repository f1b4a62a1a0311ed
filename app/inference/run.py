"""Running: a request in the engine, for no longer than its client waits, with the models as they are now."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from app.engine_client.client import Engines
from app.engine_client.errors import NotServed
from app.engine_client.messages import Iteration, Request, Result, ServedVersion
from app.http.errors import ApiError, invalid
from app.http.state import AppState
from app.inference.numbers import MAX_INLINE_BYTES
from app.inference.pool import BODIES
from app.observability.record import RequestRecord
from app.observability.tracing import MAX_EVENTS
from jfb.store import is_alias

Value = TypeVar("Value")
Decode = Callable[[ServedVersion], Awaitable[Request]]
"""Reads and decodes the body for a model, which decides what is valid."""
Events = tuple[Iteration | Result, AsyncGenerator[Iteration | Result, None]]
MAX_REPLACEMENTS = 4
"""Of a model during one request."""


async def find_model(http: HttpRequest) -> ServedVersion:
    """The model that a path names, else the default model; in the version whose number or alias it names, else in the highest."""
    engines: Engines = http.app.state.server.engines
    name: str | None = http.path_params.get("name")
    version: str | None = http.path_params.get("version")
    is_number = version is not None and re.fullmatch("[0-9]{1,19}", version)
    if version is not None and not is_number and not is_alias(version):
        raise invalid("version", "a positive integer or an alias", version)
    wanted = name, int(version) if version is not None and is_number else version
    return engines.found.get(wanted) or engines.find(*wanted)


async def predict(http: HttpRequest, decode: Decode, encode: Callable[[ServedVersion, Result], Value]) -> Value:
    """Have the engine compute a request, and encode its result. ``ClientDisconnect`` as soon as the client leaves.

    A request for an unknown model, or one that would be queued in vain, is rejected before its body is read; 504 if no row
    has an answer at its deadline.
    """
    model, result = await _with_model(http, decode, _predict)
    return await compute(http, 4 * len(result.logits), partial(encode, model, result))


async def stream(http: HttpRequest, decode: Decode) -> tuple[ServedVersion, Events]:
    """As ``predict``, but iteration by iteration: the first, for which an error can still have a status, and the rest."""
    return await _with_model(http, decode, _stream)


async def _with_model(
    http: HttpRequest, decode: Decode, run: Callable[[HttpRequest, Request], Awaitable[Value]]
) -> tuple[ServedVersion, Value]:
    """Run what is decoded for a model; again where ``NotServed`` says that the model was replaced in the meantime."""
    engines, client = http.app.state.server.engines, http.scope["client_id"]
    record: RequestRecord = http.scope["record"]

    replacements = 0
    while True:
        model = await find_model(http)
        record.model, record.version = model.model, str(model.version)
        if engines.rejections:
            engines.raise_if_full(model, client)
        request = await decode(model)
        record.rows, request.client = request.rows, client
        try:
            return model, await run(http, request)
        except NotServed:
            replacements += 1
            if replacements > MAX_REPLACEMENTS:
                raise


async def _predict(http: HttpRequest, request: Request) -> Result:
    state: AppState = http.app.state.server
    record: RequestRecord = http.scope["record"]
    if record.traced:
        return _in_time(await unless_disconnected(http, _last(_reported(state, record, request))))
    record.result = await unless_disconnected(http, state.engines.predict(request))
    return _in_time(record.result)


async def _stream(http: HttpRequest, request: Request) -> Events:
    rest = _reported(http.app.state.server, http.scope["record"], request)
    first = await unless_disconnected(http, anext(rest))
    return (_in_time(first) if isinstance(first, Result) else first), rest


async def compute(http: HttpRequest, cost: int, function: Callable[[], Value]) -> Value:
    """Call a function that takes time in proportion to some bytes: in a thread if they are many, as long as the client waits."""
    if cost <= MAX_INLINE_BYTES:
        return function()
    return await unless_disconnected(http, BODIES.run(cost, lambda _: function()))


async def _reported(state: AppState, record: RequestRecord, request: Request) -> AsyncGenerator[Iteration | Result, None]:
    async with aclosing(state.engines.stream(request)) as events:
        async for event in events:
            if isinstance(event, Result):
                record.result = event
            elif record.traced and len(record.steps) < MAX_EVENTS:
                worst = {"jfb.iteration": max(event.iterations), "jfb.residual": max(event.residual)}
                record.steps.append((time.time_ns(), worst | {"jfb.rows": len(event.rows)}))
            yield event


async def _last(events: AsyncGenerator[Iteration | Result, None]) -> Result:
    async with aclosing(events):
        (result,) = [event async for event in events if isinstance(event, Result)]
    return result


def _in_time(result: Result) -> Result:
    if not result.answered:
        raise ApiError(504, "deadline_ms: deadline passed before any row completed an iteration")
    return result


async def unless_disconnected(http: HttpRequest, computing: Coroutine[Any, Any, Value]) -> Value:
    """Await what is computed for a client; ``ClientDisconnect``, and it is cancelled, as soon as the client leaves."""
    # As asyncio.timeout does it, with a client that leaves in place of time that passes: no task for what is computed.
    task = asyncio.current_task()
    assert task is not None
    waiting, disconnected = True, False

    def stop(_: object) -> None:
        nonlocal disconnected
        if waiting:
            disconnected = True
            task.cancel()

    connection = http.scope.get("connection")  # there is none in a server other than ours
    left: asyncio.Future[None] = asyncio.create_task(_disconnect(http)) if connection is None else connection.left
    left.add_done_callback(stop)
    try:
        return await computing
    except asyncio.CancelledError:
        if disconnected and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        waiting = False
        left.remove_done_callback(stop)
        if connection is None:
            left.cancel()


async def _disconnect(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
