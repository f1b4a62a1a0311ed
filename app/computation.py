"""Computation: from checked work to what the engine made of it, unless the client goes first."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.catalogue import Model
from app.engine.client import Computed
from app.errors import Refusal
from app.server import Server
from app.work import Work

Result = TypeVar("Result")


async def compute(request: Request, server: Server, model: Model, work: Work, arrived: float) -> Computed:
    """Have rows computed and counted.

    Args:
        request: whose client waits; its body has been read.
        server: whose engine is asked.
        model: that is asked.
        work: the rows.
        arrived: when the request did, in seconds of ``time.monotonic()``; its deadlines count from there.

    Raises:
        Refusal: 504 if no row had an iteration before its deadline.
        ClientDisconnect: if the client went first; its rows leave before the next iteration.
        EngineError: as ``EngineClient.predict``.
    """
    request.state.rows = len(work.inputs)
    parameters = work.parameters
    computed = await _unless_gone(
        request,
        server.engine.client.predict(
            model.name,
            model.version,
            work.inputs,
            parameters.tolerance,
            parameters.max_iterations,
            [None if limit is None else arrived + limit / 1000 for limit in parameters.deadline_ms],
        ),
    )
    if not any(computed.iterations):
        raise Refusal(504, "deadline_ms: expected time for one iteration at least, got none before the deadline of any row")
    return computed


async def _unless_gone(request: Request, computing: Coroutine[Any, Any, Result]) -> Result:
    """Await the engine's answer, or cancel it as soon as the client has closed the connection.

    Raises:
        ClientDisconnect: if the client went first.
    """
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
