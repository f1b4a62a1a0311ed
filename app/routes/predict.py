"""POST predict: inputs in, labels out."""

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Request, Response

from app.http import body
from app.http.state import Server
from app.inference import decoding as work
from app.inference import stream as streaming
from app.inference.response import answer
from app.inference.run import compute, watch, while_models_change
from app.routes import openapi
from app.routes.direct import DirectRoute

router = APIRouter(tags=["predict"], route_class=DirectRoute)

Version = Annotated[str, Path(json_schema_extra={"type": "integer"})]


@router.post("/predict", summary="Ask the default model", **openapi.PREDICT)
async def predict_default(request: Request) -> Response:
    return await _predict(request, None, None)


@router.post("/models/{name}/predict", summary="Ask a model's highest version", **openapi.PREDICT)
async def predict_model(request: Request, name: str) -> Response:
    return await _predict(request, name, None)


@router.post("/models/{name}/versions/{version}/predict", summary="Ask one version of a model", **openapi.PREDICT)
async def predict_version(request: Request, name: str, version: Version) -> Response:
    return await _predict(request, name, version)


async def _predict(request: Request, name: str | None, version: str | None) -> Response:
    arrived = time.monotonic()
    server: Server = request.app.state.server
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
