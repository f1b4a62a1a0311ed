"""Streaming: an answer as it comes about, iteration by iteration, as server-sent events."""

from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
import numpy as np
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.engine_client.catalogue import Model
from app.engine_client.client import Computed, Iteration
from app.engine_client.errors import EngineError
from app.inference.response import answer, softmax
from app.schemas.native import Error, IterationEvent, LabelProbability

EVENT_STREAM = "text/event-stream"
TOP = 5
"""Labels that an event tells of."""


def is_wanted(request: Request) -> bool:
    """Whether the client asks for events."""
    ranges = request.headers.get("accept", "").split(",")
    return EVENT_STREAM in [one.partition(";")[0].strip().lower() for one in ranges]


class EventStream(StreamingResponse):
    """An event ``iteration`` a row and iteration, then one ``answer``; or one ``error`` if there is none after all.

    Args:
        model: that is asked.
        first: what the engine said first, for whose sake a refusal can still have a status.
        rest: what it says then; closed at the end, and when the client leaves.
    """

    def __init__(self, model: Model, first: Iteration | Computed, rest: AsyncGenerator[Iteration | Computed, None]) -> None:
        self._rest = rest
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # the latter for nginx, which would hold events back
        super().__init__(_events(model, first, rest), media_type=EVENT_STREAM, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rest.aclose()


async def _events(model: Model, first: Iteration | Computed, rest: AsyncIterator[Iteration | Computed]) -> AsyncIterator[bytes]:
    said = first
    try:
        while isinstance(said, Iteration):
            yield b"".join(_event("iteration", event) for event in _of_rows(model, said))
            said = await anext(rest)
        yield _event("answer", answer(model, said))
    except EngineError as error:
        yield _event("error", Error(f"engine: {error}"))


def _of_rows(model: Model, iteration: Iteration) -> list[IterationEvent]:
    probabilities = softmax(iteration.logits)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP].tolist()
    events = []
    for k, (row, count, residual) in enumerate(zip(iteration.rows, iteration.iterations, iteration.residual, strict=True)):
        is_finite = bool(np.isfinite(residual)) and bool(np.isfinite(probabilities[k]).all())
        top = [LabelProbability(model.config.classes[index], index, float(probabilities[k, index])) for index in best[k]]
        events.append(IterationEvent(row, count, residual if is_finite else None, top if is_finite else []))
    return events


def _event(name: str, content: msgspec.Struct) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(content))
