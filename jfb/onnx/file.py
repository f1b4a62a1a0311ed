"""ONNX files: read without trust, written as a whole."""

import os
import stat
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

OPSET = 18
"""Of the standard operators, in what is exported; onnx and ONNX Runtime have known it since 2022."""

MAX_BYTES = 1 << 30
"""Largest file that is read or written; protobuf itself ends at 2 GiB."""

MAX_ENTRIES = 1 << 28
"""Largest tensor, in entries a row, that a graph may announce: 1 GiB of float32."""

METADATA = "metadata_props"


class OnnxFileError(ValueError):
    """An ONNX file that is not used; the message says what is wrong and what was expected, not which file."""


def read(path: Path) -> ModelProto:
    """Read a model that anybody may have written, and refuse what could harm whoever runs it.

    Standard operators only; nothing that refers to another file; no ``Loop``, whose end nobody can promise; no tensor that
    is announced to be enormous. What is left can still ask for much memory or time by numbers that it computes, which is one
    of the reasons why engines are processes of their own.

    Raises:
        OnnxFileError: for a file that is missing, too large, or not ONNX, and for what is refused.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise OnnxFileError(error.strerror or str(error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise OnnxFileError("expected a file")
    if not 0 < found.st_size <= MAX_BYTES:
        raise OnnxFileError(f"expected a size of 1 to {MAX_BYTES:,} bytes, got {found.st_size:,}")
    try:
        model: ModelProto = ModelProto.FromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise OnnxFileError(f"not a readable ONNX file: {error}") from error
    _check_reach(model)
    check(model)
    _check_announced_sizes(model)
    return model


def write(path: Path, model: ModelProto) -> None:
    """Write a checked model, so that nobody ever sees half of it.

    Raises:
        OnnxFileError: for a model that is too large or invalid.
    """
    if model.ByteSize() > MAX_BYTES:
        raise OnnxFileError(f"expected at most {MAX_BYTES:,} bytes, got {model.ByteSize():,}")
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
        OnnxFileError: if it finds something.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # its C++ raises a dozen types, and what a broken file sets off is not documented
        raise OnnxFileError(f"not a valid ONNX model: {error}") from error


def without_metadata(model: ModelProto) -> ModelProto:
    """Drop what an exporter notes about itself, in place: stack traces, with the paths of the machine it ran on."""
    for message in messages(model):
        for field in (METADATA, "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
    return model


def messages(message: Message) -> Iterator[Message]:
    """Every message inside a message, itself first: subgraphs, functions and attributes included."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if isinstance(value, Message) else value:
                yield from messages(part)


def shape(value: ValueInfoProto) -> tuple[int | None, ...] | None:
    """The sides of a float32 tensor that a graph announces, None for a side that is free; None for anything else."""
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT or not tensor.HasField("shape"):
        return None
    return tuple(side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)


def _check_reach(model: ModelProto) -> None:
    if model.functions:
        raise OnnxFileError("functions: expected none (inline them when exporting), got " + model.functions[0].name)
    for message in messages(model):
        if isinstance(message, TensorProto) and (message.data_location == TensorProto.EXTERNAL or message.external_data):
            raise OnnxFileError(f"tensor {message.name!r}: expected its data in the file, got a reference to another one")
        if isinstance(message, NodeProto) and message.domain not in ("", "ai.onnx"):
            raise OnnxFileError(f"operator {message.op_type!r}: expected a standard one, got domain {message.domain!r}")
        if isinstance(message, NodeProto) and message.op_type == "Loop":
            raise OnnxFileError("operator 'Loop': refused, because nobody can promise that it ends")


def _check_announced_sizes(model: ModelProto) -> None:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # as above
        raise OnnxFileError(f"not a valid ONNX model: {error}") from error
    for message in messages(inferred):
        if isinstance(message, GraphProto):
            for value in (*message.value_info, *message.input, *message.output):
                entries = prod(side.dim_value for side in value.type.tensor_type.shape.dim if side.HasField("dim_value"))
                if entries > MAX_ENTRIES:
                    raise OnnxFileError(f"tensor {value.name!r}: expected at most {MAX_ENTRIES:,} entries a row, got {entries:,}")
