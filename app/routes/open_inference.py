"""The Open Inference Protocol (KServe v2): server and model metadata, readiness, infer."""

import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.engine_client import messages
from app.engine_client.messages import ServedVersion
from app.http.auth import AccessRoute, user
from app.http.errors import unavailable
from app.http.fast_route import FastRoute
from app.http.state import State
from app.inference import open_inference, run
from app.routes.openapi import errors
from app.schemas import open_inference as schemas
from app.settings import Settings

OPTIONS: dict[str, Any] = {"prefix": "/v2", "tags": ["open inference protocol"], "dependencies": [Depends(user)]}
router = APIRouter(route_class=AccessRoute, **OPTIONS)
infer_router = APIRouter(route_class=FastRoute, **OPTIONS)
PLATFORM = "jfb_safetensors"
MAX_COMPRESSION = 1032
"""Of zlib: bytes that one compressed byte may become."""
DESCRIPTION = """Tensors may follow the JSON as raw bytes, in the request (`binary_data_size`) and in the response (`binary_data`,
`binary_data_output`); the header Inference-Header-Content-Length then has the length of the JSON.

`tolerance` and `max_iterations` may be parameters, or inputs with one entry per row, which take precedence; `solver` and `stop`
may be parameters. With `stop: label` there are also the outputs `margin` and `bound`."""
BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}}
OPENAPI: dict[str, Any] = {
    "response_model": schemas.InferResponse,
    "description": DESCRIPTION,
    "responses": errors(400, 401, 404, 408, 413, 415, 429, 500, 503, 504),
    "openapi_extra": {"requestBody": {"required": True, "content": BODY}},
}
RequestedModel = Annotated[ServedVersion, Depends(run.find_model)]


@router.get("", summary="Server metadata", responses=errors(401))
@router.get("/", include_in_schema=False)
async def server_metadata() -> schemas.ServerMetadata:
    try:
        number = version("jfb")
    except PackageNotFoundError:  # run from a checkout
        number = "0"
    return schemas.ServerMetadata(name="jfb", version=number, extensions=["binary_tensor_data", "model_repository"])


@router.get("/models/{name}", summary="Model metadata", responses=errors(401, 404, 503))
@router.get("/models/{name}/versions/{version}", summary="Metadata of one version", responses=errors(400, 401, 404, 503))
async def model_metadata(state: State, model: RequestedModel) -> schemas.ModelMetadata:
    spec = model.config.input
    inputs = [
        schemas.TensorMetadata(name="inputs", datatype="UINT8" if spec.dtype == "uint8" else "FP32", shape=[-1, *spec.shape])
    ]
    optional = schemas.MetadataParameters(optional=True)
    for name, datatype in open_inference.PER_ROW.items():
        inputs.append(schemas.TensorMetadata(name=name, datatype=datatype, shape=[-1], parameters=optional))
    outputs = [
        schemas.TensorMetadata(name=name, datatype=datatype, shape=[-1, len(model.config.classes)] if name == "logits" else [-1])
        for name, (datatype, _) in open_inference.outputs_for(model.label_stop is not None).items()
    ]
    versions = [str(number) for number in state.engines.catalogue.versions(model.model)]
    return schemas.ModelMetadata(name=model.model, versions=versions, platform=PLATFORM, inputs=inputs, outputs=outputs)


@router.get("/models/{name}/ready", summary="Model readiness", responses=errors(401, 404, 503))
@router.get("/models/{name}/versions/{version}/ready", summary="Readiness of one version", responses=errors(400, 401, 404, 503))
async def model_ready(state: State, model: RequestedModel) -> schemas.ModelReady:
    if not state.engines.states:
        raise unavailable("engine: starting")
    return schemas.ModelReady(name=model.model, ready=True)


@infer_router.post("/models/{name}/infer", summary="Infer with a model's highest version", **OPENAPI)
@infer_router.post("/models/{name}/versions/{version}/infer", summary="Infer with one version of a model", **OPENAPI)
async def infer(request: Request) -> Response:
    arrived = time.monotonic()
    settings: Settings = request.app.state.server.settings
    body: schemas.InferRequest
    outputs: list[tuple[str, bool]]

    async def decode(model: ServedVersion) -> messages.Request:
        nonlocal body, outputs
        encoding = request.headers.get("content-encoding", "identity")
        content = await request.body()
        cost = len(content) * (1 if encoding == "identity" else MAX_COMPRESSION)

        def split() -> tuple[schemas.InferRequest, memoryview]:
            plain = open_inference.decompress(content, encoding, settings.max_body_bytes)
            return open_inference.split(plain, request.headers.get(open_inference.JSON_LENGTH_HEADER))

        body, tail = await run.compute(request, cost, split)
        outputs = open_inference.requested_outputs(body)
        decoded = partial(open_inference.decode_infer, body, tail, model, settings, arrived)
        return await run.compute(request, cost, decoded)

    model, result = await run.predict(request, decode)
    encode = partial(open_inference.encode_infer, body, outputs, model, result)
    content, headers = await run.compute(request, 4 * len(result.logits), encode)
    return Response(content, headers=headers)
