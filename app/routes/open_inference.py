"""The Open Inference Protocol (KServe v2): server and model metadata, readiness, infer."""

import time
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, cast, get_args

from fastapi import APIRouter, Depends, Path, Request, Response

from app.http.auth import AccessRoute, FastRoute, user
from app.http.errors import unavailable
from app.http.middleware import RequestLog
from app.http.state import AppState, State
from app.inference import open_inference, run
from app.inference.decoding import parse_version
from app.routes.openapi import errors
from app.schemas.open_inference import (
    Datatype,
    InferResponse,
    MetadataParameters,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
    TensorMetadata,
)

OPTIONS: dict[str, Any] = {"prefix": "/v2", "tags": ["open inference protocol"], "dependencies": [Depends(user)]}
router = APIRouter(route_class=AccessRoute, **OPTIONS)
infer_router = APIRouter(route_class=FastRoute, **OPTIONS)

PLATFORM = "jfb_safetensors"
EXTENSIONS = ["binary_tensor_data", "model_repository"]
DESCRIPTION = """Tensors may follow the JSON as raw bytes, in the request (`binary_data_size`) and in the response (`binary_data`,
`binary_data_output`); the header Inference-Header-Content-Length then has the length of the JSON.

`tolerance` and `max_iterations` may be parameters, or inputs with one entry per row, which take precedence; `solver` and `stop`
may be parameters. With `stop: label` there are also the outputs `margin` and `bound`."""
OPENAPI: dict[str, Any] = {
    "response_model": InferResponse,
    "description": DESCRIPTION,
    "responses": errors(400, 401, 404, 408, 413, 415, 429, 500, 503, 504),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
        }
    },
}
Version = Annotated[int, Path(ge=1)]
VersionText = Annotated[str, Path(json_schema_extra={"type": "integer"})]


@router.get("", summary="Server metadata", responses=errors(401))
@router.get("/", include_in_schema=False)
async def server_metadata() -> ServerMetadata:
    try:
        number = version("jfb")
    except PackageNotFoundError:  # run from a checkout
        number = "0"
    return ServerMetadata(name="jfb", version=number, extensions=EXTENSIONS)


@router.get("/models/{name}", summary="Model metadata", responses=errors(401, 404, 503))
async def model_metadata(state: State, name: str) -> ModelMetadata:
    return _metadata(state, name, None)


@router.get("/models/{name}/versions/{version}", summary="Metadata of one version", responses=errors(400, 401, 404, 503))
async def version_metadata(state: State, name: str, version: Version) -> ModelMetadata:
    return _metadata(state, name, version)


@router.get("/models/{name}/ready", summary="Model readiness", responses=errors(401, 404, 503))
async def model_ready(state: State, name: str) -> ModelReady:
    return _ready(state, name, None)


@router.get("/models/{name}/versions/{version}/ready", summary="Readiness of one version", responses=errors(400, 401, 404, 503))
async def version_ready(state: State, name: str, version: Version) -> ModelReady:
    return _ready(state, name, version)


@infer_router.post("/models/{name}/infer", summary="Infer with a model's highest version", **OPENAPI)
async def infer(request: Request, name: str) -> Response:
    return await _infer(request, name, None)


@infer_router.post("/models/{name}/versions/{version}/infer", summary="Infer with one version of a model", **OPENAPI)
async def infer_version(request: Request, name: str, version: VersionText) -> Response:
    return await _infer(request, name, parse_version(version))


def _metadata(state: AppState, name: str, version: int | None) -> ModelMetadata:
    model = state.engines.catalogue.find(name, version)
    spec = model.config.input
    inputs = {"inputs": ("UINT8" if spec.dtype == "uint8" else "FP32", [-1, *spec.shape])}
    optional = {one: (datatype, [-1]) for one, datatype in open_inference.PER_ROW.items()}
    outputs = {one: datatype for one, (datatype, _) in open_inference.outputs_for(model.label_stop is not None).items()}
    shapes = {"logits": [-1, len(model.config.classes)]}
    return ModelMetadata(
        name=name,
        versions=[str(number) for number in state.engines.catalogue.versions(name)],
        platform=PLATFORM,
        inputs=[
            *(_tensor(one, *described) for one, described in inputs.items()),
            *(_tensor(one, *described, parameters=MetadataParameters(optional=True)) for one, described in optional.items()),
        ],
        outputs=[_tensor(one, datatype, shapes.get(one, [-1])) for one, datatype in outputs.items()],
    )


def _tensor(name: str, datatype: str, shape: list[int], **options: Any) -> TensorMetadata:
    assert datatype in get_args(Datatype)
    return TensorMetadata(name=name, datatype=cast(Datatype, datatype), shape=shape, **options)


def _ready(state: AppState, name: str, version: int | None) -> ModelReady:
    state.engines.catalogue.find(name, version)
    if not state.engines.states:
        raise unavailable("engine: starting")
    return ModelReady(name=name, ready=True)


async def _infer(request: Request, name: str, version: int | None) -> Response:
    arrived = time.monotonic()
    state: AppState = request.app.state.server
    log = RequestLog.of(request)
    # Requests for an unknown model, and those that would be queued in vain, are rejected before their body is read.
    model = state.engines.catalogue.find(name, version)
    log.model = model.model
    state.engines.raise_if_full(model)
    encoding = request.headers.get("content-encoding", "identity")
    content = open_inference.decompress(await request.body(), encoding, state.settings.max_body_bytes)
    body, tail = open_inference.split(content, request.headers.get(open_inference.JSON_LENGTH_HEADER))
    outputs = open_inference.requested_outputs(body)

    async def attempt() -> Response:
        model = state.engines.catalogue.find(name, version)
        decoded = open_inference.decode_infer(body, tail, model, state.settings, arrived)
        result = await run.predict(request, state, log, decoded)
        encoded, headers = open_inference.encode_infer(body, outputs, model, result)
        return Response(encoded, headers=headers)

    return await run.retry_if_replaced(attempt)
