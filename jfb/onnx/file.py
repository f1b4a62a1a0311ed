"""ONNX files: untrusted files are checked when they are read, and files are written atomically."""

import os
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from jfb.store import CheckpointError, read_file

OPSET = 18
"""Version of the standard operators in exported files; onnx and ONNX Runtime have supported it since 2022."""

MAX_BYTES = 1 << 30
"""Largest file that is read or written; protobuf's own limit is 2 GiB."""

MAX_ROW_ENTRIES = 1 << 28
"""Largest tensor that a graph may declare, in entries per row: 1 GiB of float32."""

METADATA = "metadata_props"


class OnnxFileError(ValueError):
    """An ONNX file that cannot be used; the message says what is wrong and what is allowed, but does not name the file."""


def read(path: Path) -> ModelProto:
    """Read a model from an untrusted file, and reject models that could harm the process that runs them.

    Allowed are standard operators without references to other files. ``Loop`` is rejected, because it may never end, and so are
    tensors that are declared to be enormous. A model can still use much memory or time through shapes that it computes, which is
    one of the reasons why an engine is a separate process.

    Raises:
        OnnxFileError: for a file that is missing, too large or not ONNX, and for a rejected model.
    """
    try:
        model: ModelProto = ModelProto.FromString(read_file(path, MAX_BYTES))
    except CheckpointError as error:
        raise OnnxFileError(str(error).removeprefix(f"{path}: ")) from error
    except DecodeError as error:
        raise OnnxFileError(f"not a readable ONNX file: {error}") from error
    _check_contents(model)
    check(model)
    _check_declared_sizes(model)
    return model


def write(path: Path, model: ModelProto) -> None:
    """Check a model and write it atomically: a reader never sees half of it.

    Raises:
        OnnxFileError: for a model that is too large or invalid.
    """
    if model.ByteSize() > MAX_BYTES:
        raise OnnxFileError(f"must have at most {MAX_BYTES:,} bytes (got {model.ByteSize():,})")
    check(model)
    descriptor, temporary = tempfile.mkstemp(prefix=".incomplete-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(model.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def check(model: ModelProto) -> None:
    """Run ONNX's own full check: structure, operators, types and shapes.

    Raises:
        OnnxFileError: if the check fails.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # its C++ code raises a dozen undocumented types for a broken file
        raise OnnxFileError(f"not a valid ONNX model: {error}") from error


def without_metadata(model: ModelProto) -> ModelProto:
    """Remove the exporter's metadata in place: stack traces with paths of the machine that it ran on."""
    for message in messages(model):
        for field in (METADATA, "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
    return model


def messages(message: Message) -> Iterator[Message]:
    """Yield a message and every message inside it: subgraphs, functions and attributes included."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if isinstance(value, Message) else value:
                yield from messages(part)


def shape(value: ValueInfoProto) -> tuple[int | None, ...] | None:
    """The declared shape of a float32 tensor, with None for a free side; None for anything else."""
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT or not tensor.HasField("shape"):
        return None
    return tuple(side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)


def _check_contents(model: ModelProto) -> None:
    if model.functions:
        raise OnnxFileError(f"functions: must be inlined when exporting (got {model.functions[0].name})")
    for message in messages(model):
        if isinstance(message, TensorProto) and (message.data_location == TensorProto.EXTERNAL or message.external_data):
            raise OnnxFileError(f"tensor {message.name!r}: must have its data in the file (got a reference to another file)")
        if isinstance(message, NodeProto) and message.domain not in ("", "ai.onnx"):
            raise OnnxFileError(f"operator {message.op_type!r}: must be a standard operator (got domain {message.domain!r})")
        if isinstance(message, NodeProto) and message.op_type == "Loop":
            raise OnnxFileError("operator 'Loop': not supported, because it may never end")


def _check_declared_sizes(model: ModelProto) -> None:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # as above
        raise OnnxFileError(f"not a valid ONNX model: {error}") from error
    for message in messages(inferred):
        if isinstance(message, GraphProto):
            for value in (*message.value_info, *message.input, *message.output):
                entries = prod(side.dim_value for side in value.type.tensor_type.shape.dim if side.HasField("dim_value"))
                if entries > MAX_ROW_ENTRIES:
                    raise OnnxFileError(
                        f"tensor {value.name!r}: must have at most {MAX_ROW_ENTRIES:,} entries per row (got {entries:,})"
                    )
