"""The Open Inference Protocol (KServe v2): server and model metadata, readiness, infer."""

import json
import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import MISSING

from app.engine_client import messages
from app.engine_client.messages import Result, ServedVersion
from app.http.auth import AccessRoute, user
from app.http.errors import ApiError, unavailable
from app.http.fast_route import FastRequest, FastRoute
from app.http.state import State
from app.inference import open_inference, run
from app.inference.decoding import build_request
from app.routes.openapi import errors
from app.schemas import open_inference as schemas
from app.settings import Settings
from jfb import __version__

OPTIONS: dict[str, Any] = {"prefix": "/v2", "tags": ["open inference protocol"], "dependencies": [Depends(user)]}
router = APIRouter(route_class=AccessRoute, **OPTIONS)
infer_router = APIRouter(route_class=FastRoute, **OPTIONS)
PLATFORM = "jfb_safetensors"
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
MAX_COMPRESSION = 1032
"""Of zlib: bytes that one compressed byte may become."""
DESCRIPTION = """Tensors may follow the JSON as raw bytes, in the request (`binary_data_size`) and in the response (`binary_data`,
`binary_data_output`); the header Inference-Header-Content-Length then has the length of the JSON.

`tolerance` and `max_iterations` may be parameters, or inputs with one entry per row, which take precedence; `solver` and `stop`
may be parameters. With `stop: label` there are also the outputs `margin` and `bound`.

Images may be PNG or JPEG files: `inputs` of datatype `BYTES` and shape [n] or [n, 1]. In raw bytes the files are as they are,
each after its length in four bytes, as Triton's clients send them; in JSON they are base64. With the parameter
`classification: k`, the output `logits` is the k highest classes of each row as `BYTES`, each "value:index:label"."""
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
    return schemas.ServerMetadata(name="jfb", version=__version__, extensions=EXTENSIONS)


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
    labels = schemas.OutputMetadataParameters(labels=model.config.classes)
    outputs = [
        schemas.OutputMetadata(name=name, datatype=datatype, shape=[-1, len(labels.labels)], parameters=labels)
        if name == "logits"
        else schemas.OutputMetadata(name=name, datatype=datatype, shape=[-1])
        for name, (datatype, _) in open_inference.OUTPUTS.items()
    ]
    versions = [str(number) for number in state.engines.catalogue.versions(model.model)]
    return schemas.ModelMetadata(name=model.model, versions=versions, platform=PLATFORM, inputs=inputs, outputs=outputs)


@router.get("/models/{name}/ready", summary="Model readiness", responses=errors(401, 404, 503))
@router.get("/models/{name}/versions/{version}/ready", summary="Readiness of one version", responses=errors(400, 401, 404, 503))
async def model_ready(state: State, model: RequestedModel) -> schemas.ModelReady:
    if not state.engines.states:
        raise unavailable("engine: starting")
    return schemas.ModelReady(name=model.model, ready=True)


@router.get("/models/{name}/config", summary="Model configuration", responses=errors(401, 404, 503))
@router.get(
    "/models/{name}/versions/{version}/config", summary="Configuration of one version", responses=errors(400, 401, 404, 503)
)
async def model_config(state: State, model: RequestedModel) -> schemas.ModelConfiguration:
    metadata, serving, settings = await model_metadata(state, model), model.config.serving, state.settings
    defaults = {
        "tolerance": f"{serving.tolerance:g}",
        "max_iterations": str(min(serving.max_iterations, settings.max_iterations_limit)),
        "solver": serving.solver,
        "residual_norm": serving.residual_norm,
        "labels": json.dumps(model.config.classes),
    }

    def tensor(described: schemas.TensorMetadata | schemas.OutputMetadata) -> schemas.ConfigTensor:
        row = described.shape[1:]
        return schemas.ConfigTensor(
            name=described.name,
            data_type=f"TYPE_{described.datatype}",
            dims=row or [1],
            reshape=MISSING if row else schemas.Reshape(shape=[]),
            optional=True if described.name in open_inference.PER_ROW else MISSING,
        )

    return schemas.ModelConfiguration(
        name=model.model,
        platform=PLATFORM,
        max_batch_size=settings.max_rows_per_request,
        input=[tensor(one) for one in metadata.inputs],
        output=[tensor(one) for one in metadata.outputs],
        instance_group=[schemas.InstanceGroup(name=model.model, count=len(settings.engine_configs))],
        parameters={name: schemas.ConfigParameter(string_value=value) for name, value in defaults.items()},
    )


NOT_OFFERED = {
    "/systemsharedmemory/{rest:path}": "shared memory: not offered; send tensors in the request, as raw bytes or JSON",
    "/cudasharedmemory/{rest:path}": "shared memory: not offered; send tensors in the request, as raw bytes or JSON",
    "/trace/setting": "trace settings: not offered; the setting --otlp-endpoint sends traces to a collector",
    "/models/{name}/trace/setting": "trace settings: not offered; the setting --otlp-endpoint sends traces to a collector",
    "/logging": "log settings: not offered; the settings --log-level and --log-format are read at the start",
    "/models/{name}/generate": "generate: not offered; use /v2/models/{name}/infer",
    "/models/{name}/generate_stream": "generate_stream: not offered; /predict streams iterations with accept: text/event-stream",
}
"""What clients may look for that other servers of the protocol have."""


async def not_offered(request: Request) -> None:
    raise ApiError(501, NOT_OFFERED[request.scope["route"].path.removeprefix("/v2")])


for path in NOT_OFFERED:
    router.add_api_route(path, not_offered, methods=["GET", "POST"], include_in_schema=False)


@infer_router.post("/models/{name}/infer", summary="Infer with a model's highest version", **OPENAPI)
@infer_router.post("/models/{name}/versions/{version}/infer", summary="Infer with one version of a model", **OPENAPI)
async def infer(request: FastRequest) -> Response:
    arrived = time.monotonic()
    settings: Settings = request.app.state.server.settings
    body: schemas.InferRequest
    outputs: list[schemas.RequestedOutput]

    async def decode(model: ServedVersion) -> messages.Request:
        nonlocal body, outputs
        encoding = request.header(b"content-encoding", "identity")
        content = await request.body()
        cost = len(content) * (1 if encoding == "identity" else MAX_COMPRESSION)

        def split() -> tuple[schemas.InferRequest, memoryview]:
            plain = open_inference.decompress(content, encoding, settings.max_body_bytes)
            return open_inference.split(plain, request.headers.get(open_inference.JSON_LENGTH_HEADER))

        body, tail = await run.compute(request, cost, split)
        outputs = open_inference.requested_outputs(body)
        decode_tensors = partial(open_inference.decode_infer, body, tail, model, settings)
        rows, parameters = await run.compute(request, cost, decode_tensors)
        return await build_request(request, rows, parameters, model, arrived)

    def encode(model: ServedVersion, result: Result) -> tuple[bytes, dict[str, str]]:
        return open_inference.encode_infer(body, outputs, model, result)

    content, headers = await run.predict(request, decode, encode)
    return Response(content, headers=headers)
