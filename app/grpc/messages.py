"""The protobuf messages of the protocol: to the JSON, and the raw bytes after it, of the same request over HTTP, and back."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from app.http.errors import ApiError
from app.inference.open_inference import JSON_LENGTH_HEADER, NUMBERS, join_entries

# A pool of its own: in the default one, the messages of a client in the same process have the same names.
_POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString((Path(__file__).parent / "open_inference.binpb").read_bytes()).file:
    _POOL.Add(_file)
SERVICE = "inference.GRPCInferenceService"
NOT_OFFERED = (
    *(f"{kind}SharedMemory{action}" for kind in ("System", "Cuda") for action in ("Status", "Register", "Unregister")),
    "TraceSetting",
    "LogSettings",
)
"""RPCs of Triton's service that this one does not have."""
CONTENTS = {
    **{name: f"{name.lower()}_contents" for name in ("INT64", "UINT64", "FP32", "FP64")},
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    "BYTES": "bytes_contents",
}
"""The field of the typed contents of a tensor, by its datatype; FP16 has none."""


@dataclass(frozen=True)
class HttpRequest:
    """The request over HTTP that asks for the same."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rpc:
    """An RPC, in terms of HTTP.

    Attributes:
        path: of the same request over HTTP, from the message.
        fields: of the response message, from the JSON that answers.
        body: of the request over HTTP, if it has one, and its headers.
        not_ready: statuses that mean ``ready: false``, not an error.
    """

    path: Callable[[Any], str]
    fields: Callable[[Any], Any] = lambda answer: answer
    body: Callable[[Any], tuple[bytes, dict[str, str]]] | None = None
    not_ready: tuple[int, ...] = ()


def decode(rpc: str, content: bytes) -> Any:
    """The request message of an RPC; an ``ApiError`` (400) for other bytes."""
    kind = _POOL.FindServiceByName(SERVICE).FindMethodByName(rpc).input_type
    try:
        return GetMessageClass(kind).FromString(content)
    except DecodeError as error:
        raise ApiError(400, f"message: must be {kind.full_name} (got {len(content)} bytes that cannot be decoded)") from error


def encode(rpc: str, answer: bytes, headers: Mapping[str, str]) -> Any:
    """The response message of an RPC, from the body and the headers that answer the same request over HTTP."""
    if rpc == "ModelInfer":
        return _infer_response(answer, int(headers[JSON_LENGTH_HEADER]))
    kind = GetMessageClass(_POOL.FindServiceByName(SERVICE).FindMethodByName(rpc).output_type)
    return ParseDict(RPCS[rpc].fields(json.loads(answer)), kind(), ignore_unknown_fields=True)


def stream_response(**fields: Any) -> Any:
    """A ``ModelStreamInferResponse``."""
    return GetMessageClass(_POOL.FindMessageTypeByName("inference.ModelStreamInferResponse"))(**fields)


def _model_path(name: str, version: str, rest: str) -> str:
    of_version = f"/versions/{quote(version, '')}" if version else ""
    return f"/v2/models/{quote(name, '')}{of_version}{rest}"


def _named(rest: str) -> Callable[[Any], str]:
    return lambda message: _model_path(message.name, message.version, rest)


def _infer_body(message: Any) -> tuple[bytes, dict[str, str]]:
    """The JSON of an infer request, and its tensors as raw bytes."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise ApiError(400, f"raw_input_contents: must be one per input, {len(message.inputs)}, or left out (got {len(raw)})")
    inputs, tensors = [], []
    for index, tensor in enumerate(message.inputs):
        if raw and tensor.HasField("contents"):
            raise ApiError(400, f"inputs[{index}].contents: must be left out with raw_input_contents (got both)")
        tensors.append(raw[index] if raw else _raw(f"inputs[{index}]", tensor))
        parameters = _parameters(tensor.parameters) | {"binary_data_size": len(tensors[-1])}
        described = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": parameters}
        inputs.append(described)
    outputs = [{"name": one.name, "parameters": _parameters(one.parameters) | {"binary_data": True}} for one in message.outputs]
    parameters = _parameters(message.parameters) | {"binary_data_output": True}
    header = msgspec.json.encode({"id": message.id, "inputs": inputs, "outputs": outputs, "parameters": parameters})
    return b"".join([header, *tensors]), {JSON_LENGTH_HEADER: str(len(header))}


def _raw(field: str, tensor: Any) -> bytes:
    """The typed contents of a tensor as raw bytes."""
    wanted = CONTENTS.get(tensor.datatype)
    given = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if wanted is None or given not in ([wanted], []):
        known = f"raw_input_contents{f' or {wanted}' if wanted else ''}"
        raise ApiError(400, f"{field}.contents: must be {known} for {tensor.datatype[:80]} (got {', '.join(given) or 'none'})")
    entries = getattr(tensor.contents, wanted)
    if tensor.datatype == "BYTES":
        return join_entries(entries)
    dtype = NUMBERS[tensor.datatype]
    array = np.array(entries, dtype=np.int64 if wanted in ("int_contents", "uint_contents") else dtype)
    if dtype != array.dtype and len(array):
        limits = np.iinfo(dtype)
        outside = array[(array < limits.min) | (array > limits.max)]
        if len(outside):
            raise ApiError(400, f"{field}.contents: must be within [{limits.min}, {limits.max}] (got {outside[0]})")
    return array.astype(dtype).tobytes()


def _parameters(given: Any) -> dict[str, Any]:
    return {name: getattr(value, kind) for name, value in given.items() if (kind := value.WhichOneof("parameter_choice"))}


def _change_body(message: Any) -> tuple[bytes, dict[str, str]]:
    parameters = {name: "" if isinstance(value, bytes) else value for name, value in _parameters(message.parameters).items()}
    return msgspec.json.encode({"parameters": parameters}), {}


def _metadata_fields(answer: dict[str, Any]) -> dict[str, Any]:
    labels = next(output["parameters"]["labels"] for output in answer["outputs"] if output["name"] == "logits")
    return {**answer, "properties": {"labels": json.dumps(labels)}}


def _infer_response(answer: bytes, length: int) -> Any:
    content = msgspec.json.decode(memoryview(answer)[:length])
    response = GetMessageClass(_POOL.FindMessageTypeByName("inference.ModelInferResponse"))(
        model_name=content["model_name"], model_version=content["model_version"], id=content.get("id", "")
    )
    for output in content["outputs"]:
        response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        size = output["parameters"]["binary_data_size"]
        response.raw_output_contents.append(answer[length : length + size])
        length += size
    return response


RPCS: Mapping[str, Rpc] = {
    "ServerLive": Rpc(lambda _: "/v2/health/live"),
    "ServerReady": Rpc(lambda _: "/v2/health/ready", not_ready=(503,)),
    "ModelReady": Rpc(_named("/ready"), not_ready=(404, 503)),
    "ServerMetadata": Rpc(lambda _: "/v2"),
    "ModelMetadata": Rpc(_named(""), _metadata_fields),
    "ModelConfig": Rpc(_named("/config"), lambda answer: {"config": answer}),
    "ModelStatistics": Rpc(lambda message: _named("/stats")(message) if message.name else "/v2/models/stats"),
    "ModelInfer": Rpc(lambda message: _model_path(message.model_name, message.model_version, "/infer"), body=_infer_body),
    "RepositoryIndex": Rpc(
        lambda _: "/v2/repository/index",
        lambda answer: {"models": answer},
        lambda message: (msgspec.json.encode({"ready": message.ready}), {}),
    ),
    "RepositoryModelLoad": Rpc(
        lambda message: f"/v2/repository/models/{quote(message.model_name, '')}/load", lambda _: {}, _change_body
    ),
    "RepositoryModelUnload": Rpc(
        lambda message: f"/v2/repository/models/{quote(message.model_name, '')}/unload", lambda _: {}, _change_body
    ),
}
"""The RPCs with one request and one response."""
