"""POST predict: inputs in, labels out."""

import time
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from app.http.auth import user
from app.http.fast_route import FastRoute
from app.inference import run
from app.inference.decoding import MEDIA_TYPES, decode_predict
from app.inference.response import predict_response
from app.inference.stream import EVENT_STREAM, EventStream
from app.routes.openapi import errors
from app.schemas.native import PredictResponse, StreamParameters

DESCRIPTION = """Send a batch as JSON or as a .npy file, or one image as PNG or JPEG:

```
curl -H 'content-type: image/png' --data-binary @image.png 'http://127.0.0.1:8000/predict?tolerance=0.001'
curl -H 'content-type: application/x-npy' --data-binary @batch.npy http://127.0.0.1:8000/predict
```

The parameters may be in the query string (repeated for one value per row); those in a JSON body take precedence.

With `Accept: text/event-stream` the server sends an event `iteration` for each iteration of each row (see IterationEvent), then
one `answer` with the response, or one `error`; `trace: state` adds a picture of the state to each iteration:

```
curl -N -H 'accept: text/event-stream' -H 'content-type: image/png' --data-binary @image.png http://127.0.0.1:8000/predict
```"""
PARAMETERS = msgspec.json.schema_components([StreamParameters])[1]["StreamParameters"]["properties"]
BODIES: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES}
BODIES["application/json"] = {"schema": {"$ref": "#/components/schemas/PredictRequest"}}
OPENAPI: dict[str, Any] = {
    "response_model": PredictResponse,
    "description": DESCRIPTION,
    "responses": {200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}}
    | errors(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    "openapi_extra": {
        "parameters": [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in PARAMETERS.items()],
        "requestBody": {"required": True, "content": BODIES},
    },
}

router = APIRouter(tags=["predict"], route_class=FastRoute, dependencies=[Depends(user)])


@router.post("/predict", summary="Predict with the default model", **OPENAPI)
@router.post("/models/{name}/predict", summary="Predict with a model's highest version", **OPENAPI)
@router.post("/models/{name}/versions/{version}/predict", summary="Predict with one version of a model", **OPENAPI)
async def predict(request: Request) -> Response:
    arrived = time.monotonic()
    ranges = request.headers.get("accept", "").split(",")
    wants_events = EVENT_STREAM in [one.partition(";")[0].strip().lower() for one in ranges]
    decode = partial(decode_predict, request, arrived, streamed=wants_events)
    if wants_events:
        return EventStream(*await run.stream(request, decode))
    model, result = await run.predict(request, decode)
    content = await run.compute(request, 4 * len(result.logits), lambda: msgspec.json.encode(predict_response(model, result)))
    return Response(content, media_type="application/json")
