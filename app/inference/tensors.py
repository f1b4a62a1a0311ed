"""Tensors of the Open Inference Protocol, to NumPy and back."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw
from numpy.typing import NDArray

from app.http.errors import Refusal
from app.schemas.open_inference import BinaryData, Output, RequestInput

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}

Struct = TypeVar("Struct")


def read(field: str, tensor: RequestInput, behind: memoryview | None, row_shape: Sequence[int]) -> NDArray[Any]:
    """The entries of an input, of its own datatype and shape.

    Args:
        field: where it stands in the request.
        tensor: what the JSON says of it.
        behind: its bytes, None if its entries stand in the JSON.
        row_shape: that it must have behind the number of rows.

    Raises:
        Refusal: 422 for another shape, or entries that are not of its datatype or not as many as its shape says.
    """
    shape, dtype = tensor.shape, DTYPES[tensor.datatype]
    if len(shape) < 1 or shape[1:] != list(row_shape):
        wanted = f"[{', '.join(map(str, ['n', *row_shape]))}]"
        raise Refusal(422, f"{field}.shape: expected {wanted}, got {shape if len(shape) <= 32 else f'{len(shape)} sides'}")
    count = math.prod(shape)
    if behind is None:
        if tensor.data is UNSET:
            raise Refusal(422, f"{field}: expected data or parameters.binary_data_size, got neither")
        return _from_json(f"{field}.data", tensor.data, shape, dtype)
    if tensor.data is not UNSET:
        raise Refusal(422, f"{field}: expected data or parameters.binary_data_size, got both")
    if len(behind) != count * dtype.itemsize:
        raise Refusal(
            422,
            f"{field}.parameters.binary_data_size: expected {count * dtype.itemsize}, "
            f"{count} entries of {tensor.datatype}, got {len(behind)}",
        )
    return np.frombuffer(behind, dtype).reshape(shape)


def write(name: str, datatype: Any, array: NDArray[Any], *, binary: bool) -> tuple[Output, bytes | None]:
    """An output, and its bytes if they shall lie behind the JSON."""
    array = np.ascontiguousarray(array, dtype=DTYPES[datatype])
    if binary:
        content = array.tobytes()
        return Output(name, datatype, list(array.shape), BinaryData(len(content))), content
    return Output(name, datatype, list(array.shape), data=array.ravel().tolist()), None


def decode(field: str, content: bytes | memoryview | Raw, kind: type[Struct]) -> Struct:
    """Read JSON that must be of a type.

    Raises:
        Refusal: 400 for what is no JSON, 422 for JSON of another type.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        place = f"{field}{path.rstrip('`')}".removeprefix("body.")
        raise Refusal(422, f"{place}: {message[:1].lower()}{message[1:]}") from error
    except RecursionError as error:
        raise Refusal(400, f"{field}: expected JSON, got lists nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refusal(400, f"{field}: expected JSON, got something else: {error}") from error


def _from_json(field: str, data: Raw, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    brackets = re.match(rb"[\s\[]*", bytes(data))
    depth = brackets.group().count(b"[") if brackets else 0
    entries = decode(field, data, _lists(dtype, 1 if depth <= 1 else len(shape)))
    try:
        with np.errstate(over="ignore"):  # to infinity, which no model takes
            array = np.array(entries, dtype=np.float64 if dtype.kind == "f" else dtype).astype(dtype)
    except ValueError as error:
        raise Refusal(422, f"{field}: expected lists of shape {list(shape)}, got lists of different lengths") from error
    found = list(array.shape)
    if found != (list(shape) if depth > 1 else [math.prod(shape)]):
        raise Refusal(422, f"{field}: expected entries of shape {list(shape)}, nested or flat, got {found}")
    return array.reshape(shape)


@lru_cache
def _lists(dtype: np.dtype[Any], depth: int) -> Any:
    kind: Any = {"b": bool, "f": float}.get(dtype.kind)
    if kind is None:
        limits = np.iinfo(dtype)
        # msgspec knows no bounds beyond those of int64.
        kind = Annotated[int, Meta(ge=int(limits.min), le=min(int(limits.max), 2**63 - 1))]
    for _ in range(depth):
        kind = list[kind]
    return kind
