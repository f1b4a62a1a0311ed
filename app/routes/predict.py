"""POST predict: inputs in, labels out."""

import time
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Response

from app.http.auth import user
from app.http.fast_route import FastRequest, FastRoute
from app.inference import multipart, run
from app.inference.decoding import MEDIA_TYPES, decode_predict
from app.inference.response import predict_response
from app.inference.stream import EventStream
from app.routes.openapi import QUERY_PARAMETERS, errors
from app.schemas.native import EVENT_STREAM, PredictResponse

DESCRIPTION = """Send a batch as JSON, as a .npy file, or as a form with PNG and JPEG files, or send one image as the body:

```
curl -F file=@first.png -F file=@second.jpg -F tolerance=0.001 http://127.0.0.1:8000/models/NAME/predict
curl -H 'content-type: image/png' --data-binary @image.png 'http://127.0.0.1:8000/models/NAME/predict?tolerance=0.001'
curl -H 'content-type: application/x-npy' --data-binary @batch.npy http://127.0.0.1:8000/models/NAME/predict
```

`/predict` uses the default model: the one that `JFB_DEFAULT_MODEL` names, else the served model that was published last.

The parameters may be in the query string or in a form, repeated for one value per row. Those in a body take precedence.

With `Accept: text/event-stream` the server sends an event `iteration` for each iteration of each row (see IterationEvent), then
one `answer` with the response, or one `error`; `trace: state` adds a picture of the state to each iteration:

```
curl -N -H 'accept: text/event-stream' -H 'content-type: image/png' --data-binary @image.png http://127.0.0.1:8000/models/NAME/predict
```"""
BODIES: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES}
BODIES["application/json"] = {"schema": {"$ref": "#/components/schemas/PredictRequest"}}
BODIES[multipart.MEDIA_TYPE] = {"schema": {"$ref": "#/components/schemas/PredictForm"}}
OPENAPI: dict[str, Any] = {
    "response_model": PredictResponse,
    "description": DESCRIPTION,
    "responses": {200: {"content": {EVENT_STREAM: {"schema": {"type": "string", "description": "Server-sent events."}}}}}
    | errors(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    "openapi_extra": {
        "parameters": QUERY_PARAMETERS,
        "requestBody": {"required": True, "content": BODIES},
    },
}

router = APIRouter(tags=["predict"], route_class=FastRoute, dependencies=[Depends(user)])


@router.post("/predict", summary="Predict with the default model", **OPENAPI)
@router.post("/models/{name}/predict", operation_id="predict_model", summary="Predict with a model's highest version", **OPENAPI)
@router.post("/models/{name}/versions/{version}/predict", summary="Predict with one version of a model", **OPENAPI)
async def predict(request: FastRequest) -> Response:
    arrived = time.monotonic()
    accepted = request.header(b"accept").lower()
    wants_events = EVENT_STREAM in accepted and EVENT_STREAM in [one.partition(";")[0].strip() for one in accepted.split(",")]
    decode = partial(decode_predict, request, arrived, streamed=wants_events)
    if wants_events:
        return EventStream(*await run.stream(request, decode))
    content = await run.predict(request, decode, lambda model, result: msgspec.json.encode(predict_response(model, result)))
    return Response(content, media_type="application/json")
