"""From what a client sent to the rows that a model takes: nested JSON lists and .npy files, checked number by number."""

import io
import math
import sys
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.engine_client.catalogue import InputSpec
from app.http.errors import Refusal, expected, shown

Rows = NDArray[np.float32]
"""Raw inputs, shape ``[n, *input_shape]``, C order."""


def from_lists(value: object, spec: InputSpec, max_rows: int) -> Rows:
    """Rows from nested lists of numbers, as JSON gives them.

    Raises:
        Refusal: 422 for anything but numbers within the spec's range in nested lists of shape ``[n, *spec.shape]``, n at
            least 1; 413 for n above ``max_rows``. It names the first entry that is wrong.
    """
    if not isinstance(value, list):
        raise expected("inputs", f"nested lists of shape {_shape_wanted(spec)}", value)
    check_count("inputs", len(value), max_rows)
    try:
        # msgspec makes sure that there are numbers only (to numpy, true would be one too), numpy that they form a block.
        lists = msgspec.convert(value, _nested_lists(len(spec.shape) + 1))
        rows = np.array(lists, dtype=np.float64)
    except (msgspec.ValidationError, ValueError) as error:
        raise _flaw_of_lists(value, spec) from error
    return _checked("inputs", rows, spec)


def from_npy(body: bytes, spec: InputSpec, max_rows: int) -> Rows:
    """Rows from the bytes of a .npy file.

    The header is judged before anything of the size that it states is allocated, and nothing is unpickled.

    Raises:
        Refusal: 422 for what is no .npy file of real numbers within the spec's range of shape ``[n, *spec.shape]``, n at
            least 1; 413 for n above ``max_rows``.
    """
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
    except Exception as error:  # whatever numpy's header parser, a tokenizer and literal_eval inside, makes of garbage
        raise Refusal(422, "body: expected a .npy file, got bytes whose header cannot be read") from error
    if dtype.kind not in "iuf":
        raise Refusal(422, f"body: expected a .npy file of integers or floats, got dtype {dtype}")
    if len(shape) != len(spec.shape) + 1 or shape[1:] != spec.shape:
        raise Refusal(422, f"body: expected shape {_shape_wanted(spec)}, got {list(shape)}")
    check_count("body", shape[0], max_rows)
    size = math.prod(shape) * dtype.itemsize
    if size != len(body) - file.tell():
        raise Refusal(422, f"body: expected {size} bytes of {dtype} after the header, got {len(body) - file.tell()}")
    rows = np.frombuffer(body, dtype, offset=file.tell()).reshape(shape, order="F" if fortran_order else "C")
    return _checked("body", rows, spec)


def from_array(field: str, rows: NDArray[Any], spec: InputSpec, max_rows: int) -> Rows:
    """Rows from an array of integers or floats.

    Raises:
        Refusal: 422 for anything but numbers within the spec's range of shape ``[n, *spec.shape]``, n at least 1; 413 for n
            above ``max_rows``.
    """
    check_count(field, len(rows), max_rows)
    return _checked(field, rows, spec)


def check_count(field: str, count: int, max_rows: int) -> None:
    """Raise a ``Refusal`` for an empty batch (422) or one that is too large (413)."""
    if count < 1:
        raise Refusal(422, f"{field}: expected at least one row, got an empty batch")
    if count > max_rows:
        raise Refusal(413, f"{field}: expected at most {max_rows} rows, got {count}")


def _checked(field: str, rows: NDArray[Any], spec: InputSpec) -> Rows:
    """The rows as float32, if their shape is right and every number is one that the model may get."""
    if rows.shape[1:] != spec.shape:
        raise Refusal(422, f"{field}: expected shape {_shape_wanted(spec)}, got {list(rows.shape)}")
    if rows.dtype.kind == "f" and rows.dtype.itemsize == 2:
        rows = rows.astype(np.float32)  # in which every bound is a number; in half precision 70,000 is infinite
    limit = np.finfo(np.float32).max
    low, high = spec.low, spec.high
    # A comparison with NaN is false, so what is not a number is not inside either.
    inside = (rows >= (-limit if low is None else low)) & (rows <= (limit if high is None else high))
    if not inside.all():
        what = "a finite number" if low is None and high is None else f"a finite number {_range_wanted(spec)}"
        raise _refuse_entry(field, what, rows, inside)
    if spec.dtype == "uint8" and rows.dtype.kind == "f":
        whole = rows == np.rint(rows)
        if not whole.all():
            raise _refuse_entry(field, "a whole number", rows, whole)
    return np.ascontiguousarray(rows, dtype=np.float32)


def _refuse_entry(field: str, what: str, rows: NDArray[Any], good: NDArray[np.bool_]) -> Refusal:
    where = np.unravel_index(int(np.argmin(good)), good.shape)
    return expected(f"{field}{''.join(f'[{i}]' for i in where)}", what, rows[where].item())


def _range_wanted(spec: InputSpec) -> str:
    if spec.low is None:
        return f"of at most {spec.high:g}"
    return f"of at least {spec.low:g}" if spec.high is None else f"within [{spec.low:g}, {spec.high:g}]"


def _shape_wanted(spec: InputSpec) -> str:
    return f"[n, {', '.join(map(str, spec.shape))}]"


@lru_cache
def _nested_lists(depth: int) -> Any:
    kind: Any = float
    for _ in range(depth):
        kind = list[kind]
    return kind


def _flaw_of_lists(value: list[Any], spec: InputSpec) -> Refusal:
    """Say what is wrong with nested lists that are not ``[n, *spec.shape]`` numbers."""
    sides: list[int] = []
    first: Any = value
    while isinstance(first, list) and len(sides) <= 32:
        sides.append(len(first))
        first = first[0] if first else None
    if sides[1:] != list(spec.shape):
        return Refusal(422, f"inputs: expected shape {_shape_wanted(spec)}, got {sides}")
    flaw = _first_flaw("inputs", value, (len(value), *spec.shape))
    return flaw or Refusal(422, f"inputs: expected numbers of shape {_shape_wanted(spec)}, got {shown(value)}")


def _first_flaw(path: str, value: object, shape: tuple[int, ...]) -> Refusal | None:
    if not shape:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return None if fits else expected(path, "a number that fits in a float", value)
    if not isinstance(value, list):
        return expected(path, f"a list of {shape[0]}", value)
    if len(value) != shape[0]:
        return Refusal(422, f"{path}: expected {shape[0]} entries, got {len(value)}; all rows have the same shape")
    flaws = (_first_flaw(f"{path}[{i}]", entry, shape[1:]) for i, entry in enumerate(value))
    return next((flaw for flaw in flaws if flaw), None)
