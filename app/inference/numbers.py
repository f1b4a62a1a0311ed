"""Numbers: nested JSON lists to arrays, in pieces, so that a large list never holds the interpreter's lock for long.

The brackets and commas alone have the shape, and are compared with those of a valid list; then each piece of the flat numbers is
decoded. So what is no such list is found before an object is made of it.
"""

import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

MAX_INLINE_BYTES = 256 * 1024
"""What is parsed on the event loop; more is parsed in a thread."""
PIECE_BYTES = 32 * 1024
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[],"))


class NumbersError(Exception):
    """A list that is not one of numbers of the shape, or has an entry that is no such number, at ``index`` if it is known."""

    def __init__(self, index: tuple[int, ...] = (), message: str = "", value: Any = None) -> None:
        super().__init__(message)
        self.index, self.message, self.value = index, message, value


def parse_numbers(text: bytes, row_shape: Sequence[int], dtype: np.dtype[Any], count: int | None = None) -> NDArray[Any]:
    """The array of a JSON list of rows, shape ``[n, *row_shape]``, of any ``count`` unless it is given.

    Args:
        text: a JSON value, whose syntax has been checked (``msgspec.Raw``).
        row_shape: of a row; with none, the rows are numbers.

    Returns:
        Integers as ``dtype``, other numbers as float64.

    Raises:
        NumbersError: with a ``message`` of msgspec if an entry is not a number of the type.
    """
    structure, row = text.translate(None, _NOT_STRUCTURE), _structure(tuple(row_shape))
    flat = text.translate(None, b"[]")
    rows = (len(structure) - 1) // (len(row) + 1) if flat and not flat.isspace() else 0
    expected = b"[%s]" % b",".join([row] * rows)
    if count not in (None, rows) or structure != expected:
        raise NumbersError(_first_difference(structure, expected, len(row) + 1))
    shape = (rows, *row_shape)
    array = np.empty(prod(shape), dtype if dtype.kind in "iu" else np.float64)
    start, filled = 0, 0
    while start < len(flat):
        end = flat.find(b",", start + PIECE_BYTES)
        end = len(flat) if end < 0 else end
        piece = b"[%s]" % flat[start:end]
        try:
            values = _decode(piece, dtype)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _entry_error(str(error), piece, filled, shape) from error
        if filled + len(values) > len(array):
            raise NumbersError
        array[filled : filled + len(values)] = values
        start, filled = end + 1, filled + len(values)
    if filled != len(array):
        raise NumbersError
    return array.reshape(shape)


def _decode(piece: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Decode numbers in a third of the time that NumPy takes for a list."""
    values = _decoder(dtype).decode(piece)
    kind = dtype.char if dtype.kind in "iu" else "d"
    return np.frombuffer(struct.pack(f"{len(values)}{kind}", *values), kind)


@lru_cache
def _structure(shape: tuple[int, ...]) -> bytes:
    text = b""
    for side in reversed(shape):
        text = b"[%s]" % b",".join([text] * side)
    return text


def _first_difference(structure: bytes, expected: bytes, row_length: int) -> tuple[int, ...]:
    """The index of the first row whose brackets or commas are not those of a valid row."""
    length = min(len(structure), len(expected))
    if length == 0:
        return ()  # no list at all
    same = np.frombuffer(structure, np.uint8, length) == np.frombuffer(expected, np.uint8, length)
    position = length if same.all() else int(np.argmin(same))
    return (position // row_length,)


@lru_cache
def _decoder(dtype: np.dtype[Any]) -> msgspec.json.Decoder[list[Any]]:
    if dtype.kind == "f":
        return msgspec.json.Decoder(list[float])
    limits = np.iinfo(dtype)  # msgspec has no bounds above 2**63 - 1
    return msgspec.json.Decoder(list[Annotated[int, Meta(ge=int(limits.min), le=min(int(limits.max), 2**63 - 1))]])


def _entry_error(message: str, piece: bytes, filled: int, shape: Sequence[int]) -> NumbersError:
    match = re.search(r" - at `\$\[(\d+)\]", message)
    if match is None:  # the piece is a part of a string or an object
        return NumbersError()
    position = filled + int(match[1])
    if position >= prod(shape):
        return NumbersError()
    index = tuple(int(one) for one in np.unravel_index(position, shape))
    try:
        value = msgspec.json.decode(piece)[int(match[1])]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        value = None
    return NumbersError(index, message[: match.start()], value)
