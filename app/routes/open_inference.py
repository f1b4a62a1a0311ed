"""The Open Inference Protocol (KServe v2): what speaks here, what a model takes and gives, infer."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter, Path, Request, Response
from msgspec import UNSET
from numpy.typing import NDArray

from app.engine_client.catalogue import Model
from app.engine_client.client import Computed
from app.http import body
from app.http.errors import Refusal, bad_requests_are_400, expected, unavailable
from app.http.state import Server, ServerOfRequest
from app.inference import binary_tensors, inputs, parameters, tensors
from app.inference.decoding import Work, check_session
from app.inference.run import compute, while_models_change
from app.routes import openapi
from app.routes.direct import DirectRoute
from app.schemas.open_inference import (
    Datatype,
    InferAnswer,
    InferRequest,
    ModelMetadata,
    ModelReady,
    RequestedOutput,
    RequestInput,
    ServerMetadata,
    TensorMetadata,
    TensorParameters,
)
from app.settings import Settings

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
direct = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=DirectRoute)

PLATFORM = "jfb_safetensors"
EXTENSIONS = ["binary_tensor_data", "model_repository"]
PER_ROW: dict[str, Datatype] = {"tolerance": "FP32", "max_iterations": "INT64"}
"""Inputs that may be left out, and hold one entry per row."""
OUTPUTS: dict[str, tuple[Datatype, Callable[[Computed], Any]]] = {
    # The last iterate of a row that diverged says nothing.
    "logits": ("FP32", lambda computed: np.where(np.equal(computed.status, "diverged")[:, None], np.nan, computed.logits)),
    "iterations": ("INT64", lambda computed: computed.iterations),
    "residual": ("FP32", lambda computed: computed.residual),
    "converged": ("BOOL", lambda computed: [status == "converged" for status in computed.status]),
}
OUTPUTS_OF_LABEL_STOPS: dict[str, tuple[Datatype, Callable[[Computed], Any]]] = {
    "margin": ("FP32", lambda computed: computed.margin),
    "bound": ("FP32", lambda computed: computed.bound),
}
"""What there is beside, where the parameter ``stop`` is ``label``."""
Version = Annotated[str, Path(description="a positive integer")]


@router.get("", summary="What speaks here", **openapi.answers(ServerMetadata))
@router.get("/", include_in_schema=False)
async def server_metadata() -> Response:
    return _json(ServerMetadata("jfb", _version(), EXTENSIONS))


@router.get("/models/{name}", summary="What a model takes and gives", **openapi.answers(ModelMetadata, 404, 503))
async def model_metadata(server: ServerOfRequest, name: str) -> Response:
    return _metadata(server, name, None)


@router.get(
    "/models/{name}/versions/{version}",
    summary="What a version of a model takes and gives",
    **openapi.answers(ModelMetadata, 400, 404, 503),
)
async def version_metadata(server: ServerOfRequest, name: str, version: Version) -> Response:
    return _metadata(server, name, version)


@router.get("/models/{name}/ready", summary="Can a model be asked?", **openapi.answers(ModelReady, 404, 503))
async def model_ready(server: ServerOfRequest, name: str) -> Response:
    return _ready(server, name, None)


@router.get(
    "/models/{name}/versions/{version}/ready",
    summary="Can a version of a model be asked?",
    **openapi.answers(ModelReady, 400, 404, 503),
)
async def version_ready(server: ServerOfRequest, name: str, version: Version) -> Response:
    return _ready(server, name, version)


@direct.post("/models/{name}/infer", summary="Ask a model's highest version", **openapi.INFER)
async def infer(request: Request, name: str) -> Response:
    return await _infer(request, name, None)


@direct.post("/models/{name}/versions/{version}/infer", summary="Ask one version of a model", **openapi.INFER)
async def infer_version(request: Request, name: str, version: Version) -> Response:
    return await _infer(request, name, version)


def _metadata(server: Server, name: str, version: str | None) -> Response:
    with bad_requests_are_400():
        model = server.catalogue.find(name, version)
    spec = model.config.input
    optional = [TensorMetadata(name, datatype, [-1], TensorParameters(True)) for name, datatype in PER_ROW.items()]
    return _json(
        ModelMetadata(
            model.name,
            [str(number) for number in server.catalogue.versions(name)],
            PLATFORM,
            [TensorMetadata("inputs", "UINT8" if spec.dtype == "uint8" else "FP32", [-1, *spec.shape]), *optional],
            [
                TensorMetadata(name, datatype, [-1, len(model.config.classes)] if name == "logits" else [-1])
                for name, (datatype, _) in (OUTPUTS | (OUTPUTS_OF_LABEL_STOPS if model.label_stop else {})).items()
            ],
        )
    )


def _ready(server: Server, name: str, version: str | None) -> Response:
    with bad_requests_are_400():
        model = server.catalogue.find(name, version)
    if not server.engine.ready:
        raise unavailable("engine: it is being started")
    return _json(ModelReady(model.name, True))


async def _infer(request: Request, name: str, version: str | None) -> Response:
    arrived = time.monotonic()
    server: Server = request.app.state.server
    with bad_requests_are_400():
        model = server.catalogue.find(name, version)  # an unknown model, or one too busy, is refused before the inputs are read
        request.state.model = model.name
        server.engine.client.refuse_if_full(model.name, model.version)
        content = await body.read(request, server.settings)
        content = body.decompress(content, request.headers.get("content-encoding", "identity"), server.settings.max_body_bytes)
        header, tail = binary_tensors.split(content, request.headers.get(binary_tensors.HEADER))
        asked = tensors.decode("body", header, InferRequest)
        wanted = _wanted(asked)

        async def attempt() -> Response:
            model = server.catalogue.find(name, version)
            computed = await compute(request, server, model, _work(asked, tail, model, server.settings), arrived)
            return _answer(asked, model, wanted, computed)

        return await while_models_change(attempt)


def _work(asked: InferRequest, tail: memoryview, model: Model, settings: Settings) -> Work:
    spec, arrays = model.config.input, _arrays(asked.inputs, tail, model)
    if "inputs" not in arrays:
        raise Refusal(422, "inputs: expected a tensor with the name inputs, got none")
    rows = inputs.from_array("inputs", arrays.pop("inputs"), spec, settings.max_rows_per_request)
    named = msgspec.structs.asdict(asked.parameters)
    given: dict[str, object] = {name: named[name] for name in parameters.NAMES if named[name] is not UNSET}
    if asked.parameters.timeout is not UNSET:
        given.setdefault("deadline_ms", asked.parameters.timeout / 1000)
    given |= {name: array.tolist() for name, array in arrays.items()}
    asked_for = parameters.read(given, len(rows), model, settings.max_iterations_limit)
    session = None if asked.parameters.session is UNSET else asked.parameters.session
    return Work(rows, asked_for, check_session(session))


def _arrays(given: Sequence[RequestInput], tail: memoryview, model: Model) -> dict[str, NDArray[Any]]:
    _check_names("inputs", [tensor.name for tensor in given], ["inputs", *PER_ROW])
    sizes = [tensor.parameters.binary_data_size for tensor in given]
    behind = iter(binary_tensors.cut(tail, [size for size in sizes if size is not UNSET]))
    arrays = {}
    for index, (tensor, size) in enumerate(zip(given, sizes, strict=True)):
        field = f"inputs[{index}]"
        if tensor.datatype == "BOOL":
            raise expected(f"{field}.datatype", "one of numbers", tensor.datatype)
        row_shape = model.config.input.shape if tensor.name == "inputs" else ()
        arrays[tensor.name] = tensors.read(field, tensor, next(behind) if size is not UNSET else None, row_shape)
    return arrays


def _wanted(asked: InferRequest) -> list[tuple[str, bool]]:
    """The names of the outputs to send, each with whether it shall lie behind the JSON."""
    known = _outputs(asked)
    outputs = [RequestedOutput(name) for name in known] if asked.outputs is UNSET or not asked.outputs else asked.outputs
    _check_names("outputs", [output.name for output in outputs], known)
    otherwise = asked.parameters.binary_data_output
    return [(one.name, otherwise if one.parameters.binary_data is UNSET else one.parameters.binary_data) for one in outputs]


def _outputs(asked: InferRequest) -> dict[str, tuple[Datatype, Callable[[Computed], Any]]]:
    return OUTPUTS | OUTPUTS_OF_LABEL_STOPS if asked.parameters.stop == "label" else OUTPUTS


def _check_names(field: str, names: Sequence[str], known: Iterable[str]) -> None:
    for index, name in enumerate(names):
        if name not in known:
            raise expected(f"{field}[{index}].name", f"one of {', '.join(known)}", name)
    for name, times in Counter(names).items():
        if times > 1:
            raise Refusal(422, f"{field}: expected {name} once, got it {times} times")


def _answer(asked: InferRequest, model: Model, wanted: Sequence[tuple[str, bool]], computed: Computed) -> Response:
    outputs, behind = [], []
    for name, binary in wanted:
        datatype, values = _outputs(asked)[name]
        output, content = tensors.write(name, datatype, np.asarray(values(computed)), binary=binary)
        outputs.append(output)
        if content is not None:
            behind.append(content)
    header = msgspec.json.encode(InferAnswer(model.name, str(model.version), outputs, asked.id))
    whole, headers = binary_tensors.join(header, behind)
    return Response(whole, headers=headers)


def _version() -> str:
    try:
        return version("jfb")
    except PackageNotFoundError:  # run from a checkout
        return "0"


def _json(content: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
