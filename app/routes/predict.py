"""POST predict: inputs in, labels out."""

import time

import msgspec
from fastapi import APIRouter, Request, Response

from app import body, openapi, streaming, work
from app.answer import answer
from app.asking import compute, watch, while_models_change
from app.server import Server, ServerOfRequest

router = APIRouter(tags=["predict"])


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
    model = server.catalogue.find(name, version)  # an unknown model, or one too busy, is refused before the inputs are read
    request.state.model = model.name
    media_type = body.media_type(request)
    server.engine.client.refuse_if_full(model.name, model.version)
    content = await body.read(request, server.settings)

    async def attempt() -> Response:
        model = server.catalogue.find(name, version)
        asked = await work.read(content, media_type, request.query_params, model, server.settings)
        if streaming.is_wanted(request):
            return await watch(request, server, model, asked, arrived)
        computed = await compute(request, server, model, asked, arrived)
        return Response(msgspec.json.encode(answer(model, computed)), media_type="application/json")

    return await while_models_change(attempt)
