"""The Open Inference Protocol's tensors, in JSON or as raw bytes after it: to a ``Request``, and from a ``Result``."""

import base64
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw
from numpy.typing import NDArray

from app.engine_client.messages import Result, ServedVersion
from app.http.errors import ApiError, invalid
from app.inference.decoding import (
    ImageBatch,
    Rows,
    check_count,
    check_lengths,
    check_rows,
    check_size,
    decode_json,
    lists_of,
    numbers_of_json,
)
from app.inference.numbers import MAX_INLINE_BYTES
from app.schemas.native import PredictParameters
from app.schemas.open_inference import (
    Datatype,
    InferRequest,
    OutputParameters,
    RawInferRequest,
    RequestedOutput,
    RequestInput,
)
from app.settings import Settings

JSON_LENGTH_HEADER = "inference-header-content-length"
"""The HTTP header with the number of bytes of a body that are JSON; without it, all are."""
NUMBERS: Mapping[str, np.dtype[Any]] = {
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
PER_ROW: Mapping[str, Datatype] = {"tolerance": "FP32", "max_iterations": "INT64"}
"""Optional inputs with one entry per row; they take precedence over parameters."""
OUTPUTS: Mapping[str, tuple[Datatype, Callable[[Result], Any]]] = {
    # The last iterate of a row that diverged has no meaning.
    "logits": ("FP32", lambda result: np.where(np.equal(result.status, "diverged")[:, None], np.nan, result.logits_array())),
    "iterations": ("INT64", lambda result: result.iterations),
    "residual": ("FP32", lambda result: result.residual),
    "converged": ("BOOL", lambda result: [status == "converged" for status in result.status]),
}
LABEL_STOP_OUTPUTS: Mapping[str, tuple[Datatype, Callable[[Result], Any]]] = {
    "margin": ("FP32", lambda result: result.margin),
    "bound": ("FP32", lambda result: result.bound),
}
"""Additional outputs with the parameter ``stop: label``."""


def decompress(content: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo a content encoding; ``ApiError`` 413 for more than ``max_bytes``, 415 for other encodings, 400 for wrong bytes."""
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return content
    if encoding not in ("gzip", "deflate"):
        raise ApiError(415, f"content-encoding: must be identity, gzip or deflate (got {encoding[:80]})")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects which of the two it is
    try:
        plain = stream.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise ApiError(400, f"body: must be {encoding} (got bytes that cannot be decompressed)") from error
    if len(plain) > max_bytes:
        raise ApiError(413, f"body: must have at most {max_bytes} bytes when decompressed (got more)")
    if not stream.eof or stream.unused_data:
        raise ApiError(400, f"body: must be one whole {encoding} stream (got {'less' if not stream.eof else 'more'})")
    return plain


def split(body: bytes, json_length: str | None) -> tuple[InferRequest, memoryview]:
    """Decode a body's JSON, of the length in ``JSON_LENGTH_HEADER``, and return it with what follows it; else an ``ApiError``."""
    whole, length = memoryview(body), len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdecimal() and len(json_length) < 20):
            raise invalid(JSON_LENGTH_HEADER, "a number of bytes", json_length)
        length = int(json_length)
        if length > len(body):
            raise invalid(JSON_LENGTH_HEADER, f"at most the {len(body)} bytes of the body", length)
    if length > MAX_INLINE_BYTES:
        envelope: Any = decode_json("body", whole[:length], RawInferRequest)
        for name in ("outputs", "parameters", "id"):
            check_size(name, getattr(envelope, name))
    return decode_json("body", whole[:length], InferRequest), whole[length:]


def decode_infer(
    body: InferRequest, tail: memoryview, model: ServedVersion, settings: Settings
) -> tuple[Rows | ImageBatch, PredictParameters]:
    """Validate an infer request's tensors; its rows, or the images that they are to be decoded from, and its parameters.

    ``tail`` is what follows its JSON. Raises an ``ApiError`` as ``decode_predict``.
    """
    spec, max_rows = model.config.input, settings.max_rows_per_request
    given = body.parameters
    parameters = PredictParameters(**{name: getattr(given, name) for name in PredictParameters.__struct_fields__})
    if given.timeout is not UNSET and parameters.deadline_ms is UNSET:
        parameters.deadline_ms = given.timeout / 1000
    arrays: dict[str, NDArray[Any]] = {}
    files: dict[str, bytes] = {}
    for name, (field, tensor, raw) in _tensors(body.inputs, tail).items():
        if name == "inputs" and tensor.datatype == "BYTES":
            files = _files(field, tensor, raw, max_rows)
        else:
            arrays[name] = _array(field, tensor, raw, spec.shape if name == "inputs" else ())
    rows = arrays.pop("inputs", None)
    if rows is None and not files:
        raise ApiError(422, "inputs: must have a tensor with the name inputs (got none)")
    for name, array in arrays.items():
        setattr(parameters, name, array.tolist())
    if rows is None:
        return ImageBatch(files, spec), parameters
    check_count("inputs", len(rows), max_rows)
    return check_rows("inputs", rows, spec), parameters


def requested_outputs(body: InferRequest) -> list[RequestedOutput]:
    """The outputs to send, all if none is requested; each says whether it follows the JSON as raw bytes."""
    known = outputs_for(body.parameters.stop == "label")
    requested = [RequestedOutput(name) for name in known] if body.outputs is UNSET or not body.outputs else body.outputs
    _check_names("outputs", [output.name for output in requested], known)
    outputs = []
    for index, one in enumerate(requested):
        binary, classes = one.parameters.binary_data, one.parameters.classification
        if classes is not UNSET and one.name != "logits":
            field = f"outputs[{index}].parameters.classification"
            raise ApiError(422, f"{field}: must be left out, except of logits (got it for {one.name})")
        parameters = OutputParameters(body.parameters.binary_data_output if binary is UNSET else binary, classes)
        outputs.append(RequestedOutput(one.name, parameters))
    return outputs


def outputs_for(label_stops: bool) -> dict[str, tuple[Datatype, Callable[[Result], Any]]]:
    """The outputs by name, each with its datatype and how it is read from a result."""
    return {**OUTPUTS, **(LABEL_STOP_OUTPUTS if label_stops else {})}


def encode_infer(
    body: InferRequest, outputs: Sequence[RequestedOutput], model: ServedVersion, result: Result
) -> tuple[bytes, dict[str, str]]:
    """The body of a response with ``requested_outputs``, and its headers."""
    known = outputs_for(body.parameters.stop == "label")
    described, tensors = [], []
    for requested in outputs:
        datatype, values = known[requested.name]
        array = np.ascontiguousarray(values(result), dtype=bool if datatype == "BOOL" else NUMBERS[datatype])
        shape, binary, count = array.shape, requested.parameters.binary_data, requested.parameters.classification
        if count is not UNSET:
            classes = _highest_classes(array, count, model.config.classes)
            datatype, shape = "BYTES", (len(array), len(classes) // len(array))
        output: dict[str, Any] = {"name": requested.name, "datatype": datatype, "shape": list(shape)}
        if binary:
            tensors.append(array.tobytes() if count is UNSET else join_entries([entry.encode() for entry in classes]))
            output["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            output["data"] = array.ravel().tolist() if count is UNSET else classes
        described.append(output)
    content: dict[str, Any] = {"model_name": model.model, "model_version": str(model.version), "outputs": described}
    if body.id is not UNSET:
        content["id"] = body.id
    header = msgspec.json.encode(content)
    if not tensors:
        return header, {"content-type": "application/json"}
    return b"".join([header, *tensors]), {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(header))}


def join_entries(entries: Iterable[bytes]) -> bytes:
    """The raw bytes of a ``BYTES`` tensor: each entry after its length in four bytes."""
    return b"".join(part for entry in entries for part in (len(entry).to_bytes(4, "little"), entry))


def _highest_classes(logits: NDArray[np.float32], count: int, classes: Sequence[str]) -> list[str]:
    """``value:index:label`` of the highest ``count`` logits of each row, as Triton's classification extension writes them."""
    highest = np.argsort(-logits, axis=1, kind="stable")[:, :count].tolist()
    rows = zip(logits.tolist(), highest, strict=True)
    return [f"{row[index]:f}:{index}:{classes[index]}" for row, indices in rows for index in indices]


def _split(field: str, raw: memoryview, count: int) -> list[bytes]:
    entries: list[bytes] = []
    start = 0
    while start < len(raw) and len(entries) <= count:
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if end > len(raw):
            raise ApiError(422, f"{field}: must be entries of BYTES, each after its length in four bytes (got one that is cut)")
        entries.append(bytes(raw[start + 4 : end]))
        start = end
    if len(entries) != count:
        raise ApiError(422, f"{field}: must be {count} entries of BYTES (got {'more' if len(entries) > count else len(entries)})")
    return entries


def _tensors(given: Sequence[RequestInput], tail: memoryview) -> dict[str, tuple[str, RequestInput, memoryview | None]]:
    """The inputs by name, each with its field and with its bytes if they followed the JSON."""
    _check_names("inputs", [tensor.name for tensor in given], ["inputs", *PER_ROW])
    sizes = [size for tensor in given if (size := tensor.parameters.binary_data_size) is not UNSET]
    if sum(sizes) != len(tail):
        raise ApiError(422, f"body: must have {sum(sizes)} bytes of tensors after the JSON (got {len(tail)})")
    tensors = {}
    for index, tensor in enumerate(given):
        field, size = f"inputs[{index}]", tensor.parameters.binary_data_size
        raw, tail = (None, tail) if size is UNSET else (tail[:size], tail[size:])
        if (raw is None) == (tensor.data is UNSET):
            got = "neither" if raw is None else "both"
            raise ApiError(422, f"{field}: must have data or parameters.binary_data_size (got {got})")
        tensors[tensor.name] = field, tensor, raw
    return tensors


def _files(field: str, tensor: RequestInput, raw: memoryview | None, max_rows: int) -> dict[str, bytes]:
    """The files in a ``BYTES`` tensor by their fields: as they are in raw bytes, in base64 in JSON."""
    shape = tensor.shape
    if not shape or shape[1:] not in ([], [1]):
        raise ApiError(422, f"{field}.shape: must be [n] or [n, 1] (got {_shown_shape(shape)})")
    check_count("inputs", shape[0], max_rows)
    if raw is not None:
        entries = _split(field, raw, shape[0])
        return {f"{field}[{index}]": entry for index, entry in enumerate(entries)}
    assert tensor.data is not UNSET
    if (commas := bytes(tensor.data).count(b",")) >= shape[0]:  # or the list would take much memory
        raise ApiError(422, f"{field}.data: must be {shape[0]} base64 strings (got {commas + 1})")
    nested = re.match(rb"\s*\[\s*\[", bytes(tensor.data)) is not None
    texts = decode_json(f"{field}.data", tensor.data, list[list[str]] if nested else list[str])
    if nested:
        check_lengths(f"{field}.data", texts, [shape[0], 1])
        texts = [text for (text,) in texts]
    check_lengths(f"{field}.data", texts, shape[:1])
    return {f"{field}.data[{index}]": _from_base64(f"{field}.data[{index}]", text) for index, text in enumerate(texts)}


def _from_base64(field: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise invalid(field, "a base64 string", text) from error


def _shown_shape(shape: Sequence[int]) -> str:
    return str(list(shape)) if len(shape) <= 32 else f"{len(shape)} sides"


def _array(field: str, tensor: RequestInput, raw: memoryview | None, row_shape: Sequence[int]) -> NDArray[Any]:
    """The entries of an input; ``raw`` is its bytes if they followed the JSON."""
    if tensor.datatype not in NUMBERS:
        known = [*NUMBERS, "BYTES"] if tensor.name == "inputs" else NUMBERS
        raise invalid(f"{field}.datatype", f"one of {', '.join(known)}", tensor.datatype)
    shape, dtype = tensor.shape, NUMBERS[tensor.datatype]
    if len(shape) < 1 or shape[1:] != list(row_shape):
        wanted = f"[{', '.join(map(str, ['n', *row_shape]))}]"
        raise ApiError(422, f"{field}.shape: must be {wanted} (got {_shown_shape(shape)})")
    count = math.prod(shape)
    if raw is None:
        assert tensor.data is not UNSET
        return _array_of_json(f"{field}.data", tensor.data, shape, dtype)
    if len(raw) != count * dtype.itemsize:
        requirement = f"{count * dtype.itemsize}, {count} entries of {tensor.datatype}"
        raise invalid(f"{field}.parameters.binary_data_size", requirement, len(raw))
    return np.frombuffer(raw, dtype).reshape(shape)


def _array_of_json(field: str, data: Raw, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    text = bytes(data)
    brackets = re.match(rb"[\s\[]{0,128}", text)
    depth = brackets.group().count(b"[") if brackets else 0
    row_shape, count = ((), math.prod(shape)) if depth <= 1 else (shape[1:], shape[0])
    numbers = numbers_of_json(field, text, row_shape, dtype, count)
    if numbers is not None:
        with np.errstate(over="ignore"):  # to infinity, which no model takes
            return numbers.astype(dtype, copy=False).reshape(shape)
    # Raise what is wrong with the lists.
    entries = decode_json(field, data, _lists(dtype, 1 if depth <= 1 else len(shape)))
    try:
        array = np.array(entries, dtype=np.float64 if dtype.kind == "f" else dtype)
    except ValueError:
        check_lengths(field, entries, shape)
        raise
    raise ApiError(422, f"{field}: must be entries of shape {list(shape)}, nested or flat (got {list(array.shape)})")


@lru_cache
def _lists(dtype: np.dtype[Any], depth: int) -> Any:
    if dtype.kind == "f":
        return lists_of(float, depth)
    limits = np.iinfo(dtype)  # msgspec has no bounds above 2**63 - 1
    return lists_of(Annotated[int, Meta(ge=int(limits.min), le=min(int(limits.max), 2**63 - 1))], depth)


def _check_names(field: str, names: Sequence[str], known: Iterable[str]) -> None:
    for index, name in enumerate(names):
        if name not in known:
            raise invalid(f"{field}[{index}].name", f"one of {', '.join(known)}", name)
    for name, times in Counter(names).items():
        if times > 1:
            raise ApiError(422, f"{field}: must have {name} once (got it {times} times)")
