"""POST predict: inputs in, labels out."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from app import body, openapi, work
from app.answer import answer
from app.errors import Refusal
from app.server import Server, ServerOfRequest

router = APIRouter(tags=["predict"])

Result = TypeVar("Result")


@router.post("/predict", summary="Ask the default model", **openapi.PREDICT)
async def predict_default(request: Request, server: ServerOfRequest) -> Response:
    return await _predict(request, server, None, None)


@router.post("/models/{name}/predict", summary="Ask a model's highest version", **openapi.PREDICT)
async def predict_model(request: Request, server: ServerOfRequest, name: str) -> Response:
    return await _predict(request, server, name, None)


@router.post("/models/{name}/versions/{version}/predict", summary="Ask one version of a model", **openapi.PREDICT)
async def predict_version(request: Request, server: ServerOfRequest, name: str, version: int) -> Response:
    return await _predict(request, server, name, version)


async def _predict(request: Request, server: Server, name: str | None, version: int | None) -> Response:
    arrived = time.monotonic()
    model = server.catalogue.find(name, version)
    media_type = body.media_type(request)
    content = await body.read(request, server.settings.max_body_bytes)
    asked = await work.read(content, media_type, request.query_params, model, server.settings)
    request.state.rows = len(asked.inputs)
    parameters = asked.parameters
    computed = await _unless_gone(
        request,
        server.engine.client.predict(
            model.name,
            model.version,
            asked.inputs,
            parameters.tolerance,
            parameters.max_iterations,
            [None if limit is None else arrived + limit / 1000 for limit in parameters.deadline_ms],
        ),
    )
    if not any(computed.iterations):
        raise Refusal(504, "deadline_ms: expected time for one iteration at least, got none before the deadline of any row")
    return Response(msgspec.json.encode(answer(model, computed)), media_type="application/json")


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
