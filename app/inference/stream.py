"""Streaming: a prediction iteration by iteration, as server-sent events."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.engine_client.errors import EngineError
from app.engine_client.messages import Iteration, Result, ServedVersion
from app.http.errors import engine_error
from app.inference.response import engine_timings, iteration_events, predict_response
from app.inference.run import Events
from app.schemas.native import EVENT_STREAM


class EventStream(StreamingResponse):
    """An event ``iteration`` per row and iteration, then ``answer`` or ``error``; what follows the first is closed."""

    def __init__(self, model: ServedVersion, events: Events) -> None:
        first, self._rest = events
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # the latter for nginx, which would buffer events
        super().__init__(_events(model, first, self._rest), media_type=EVENT_STREAM, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rest.aclose()


async def _events(
    model: ServedVersion, first: Iteration | Result, rest: AsyncIterator[Iteration | Result]
) -> AsyncIterator[bytes]:
    event = first
    try:
        while isinstance(event, Iteration):
            yield b"".join(_encode("iteration", row) for row in iteration_events(model, event))
            event = await anext(rest)
        yield _encode("answer", predict_response(model, event) | {"timings": engine_timings(event)})
    except EngineError as error:
        yield _encode("error", {"error": engine_error(error).detail})


def _encode(name: str, content: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(content))
