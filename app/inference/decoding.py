"""Decoding: from the body of a predict request to a validated ``Request``."""

import base64
import io
import math
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import lru_cache, partial
from itertools import chain
from threading import Event
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest

from app.engine_client.messages import Request, ServedVersion, Stop
from app.http.errors import ApiError, invalid, shown
from app.http.fast_route import FastRequest
from app.inference import multipart, run
from app.inference.numbers import MAX_INLINE_BYTES, NumbersError, parse_numbers
from app.inference.pool import IMAGES
from app.schemas.native import (
    MAX_DEADLINE_MS,
    MAX_SESSION_CHARACTERS,
    MAX_TOLERANCE,
    MAX_TRACED_ROWS,
    MIN_TOLERANCE,
    PredictParameters,
    PredictRequest,
    RawPredictRequest,
    StreamParameters,
)
from app.settings import Settings
from jfb import images
from jfb.config import InputSpec

TOO_LARGE = "Number out of range"
"""What msgspec says of numbers that no float holds."""
_TYPES = {"float": "number", "int": "integer", "str": "string", "bool": "boolean", "array": "list", "object": "object"}
"""Names of JSON's types, by those of msgspec."""
MEDIA_TYPES = ("application/json", "application/x-npy", "image/png", "image/jpeg", multipart.MEDIA_TYPE)
FILE = "file"
"""The name of a part that is an image."""
_DATA_URI = re.compile(r"data:image/(?:png|jpeg);base64,")
Scalar = TypeVar("Scalar", int, float)
_decoder = lru_cache(msgspec.json.Decoder)
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # differs in how it encodes the names of fields, which no model takes
}
MAX_PIXELS_PER_REQUEST = 2**27
MAX_IMAGE_SECONDS = 10.0
"""For decoding all images of one request, once a thread has started with it."""
MAX_FLOAT = float(np.finfo(np.float32).max)
Rows = NDArray[np.float32]
"""Raw inputs, shape ``[n, *input_shape]``, C order."""


async def decode_predict(http: FastRequest, arrived: float, model: ServedVersion, *, streamed: bool = False) -> Request:
    """Read a body, decode it and its parameters; those in the body precede the query's. Deadlines count from ``arrived``."""
    settings: Settings = http.app.state.server.settings
    content_type = http.header(b"content-type")
    kind = media_type(content_type, http.header(b"content-encoding", "identity"))
    body = await http.body()
    query = StreamParameters()
    if http.scope["query_string"]:
        texts = http.query_params
        _decode_texts({name: texts.getlist(name) for name in texts}, query)
    decode = partial(_decode_body, body, content_type, kind, model.config.input, settings.max_rows_per_request)
    rows, parameters = await run.compute(http, len(body) * (multipart.PART_COST if kind == multipart.MEDIA_TYPE else 1), decode)
    if http.scope["query_string"]:
        for name in query.__struct_fields__:
            if getattr(parameters, name) is UNSET:
                setattr(parameters, name, getattr(query, name))
    request = await build_request(http, rows, parameters, model, arrived)
    request.with_states = _traced(parameters.trace, request.rows, streamed=streamed)
    return request


async def build_request(
    http: HttpRequest, rows: "Rows | ImageBatch", parameters: PredictParameters, model: ServedVersion, arrived: float
) -> Request:
    """Decode images, if rows are images, and validate parameters; the model's defaults hold for what is left out."""
    if isinstance(rows, ImageBatch):
        rows = await run.unless_disconnected(http, IMAGES.run(rows.pixels, rows.decode))
    settings: Settings = http.app.state.server.settings
    count, limit, serving = len(rows), settings.max_iterations_limit, model.config.serving
    stop = _stop(parameters.stop, model)
    solver = _solver(parameters.solver, stop, model)
    default_tolerance = model.label_stop.tolerance if stop == "label" and model.label_stop else serving.tolerance
    tolerances: list[float] = [default_tolerance] * count
    if (given := parameters.tolerance) is not UNSET:
        requirement = "a finite number above 0 (1.2e-38 to 3.4e38)"
        tolerances = _per_row("tolerance", given, count, float, MIN_TOLERANCE, MAX_TOLERANCE, requirement)
    caps = [min(serving.max_iterations, limit)] * count
    if (given := parameters.max_iterations) is not UNSET:
        caps = _per_row("max_iterations", given, count, int, 1, limit, f"an integer between 1 and {limit}")
    deadlines: list[float | None] = [None] * count
    if (given := parameters.deadline_ms) is not UNSET:
        requirement = f"finite, above 0 and at most {MAX_DEADLINE_MS}"
        values = _per_row("deadline_ms", given, count, float, math.ulp(0.0), MAX_DEADLINE_MS, requirement)
        deadlines = [arrived + value / 1000 for value in values]
    return Request(
        model.model,
        model.version,
        rows.tobytes(),
        tolerances,
        caps,
        deadlines,
        fingerprint=model.fingerprint,
        solver=solver,
        stop=stop,
        session=_session(parameters.session),
    )


def media_type(content_type: str, encoding: str) -> str:
    """The type that a header names, one of ``MEDIA_TYPES``; an ``ApiError`` (415) for another one, or a compressed body."""
    name = content_type.partition(";")[0].strip().lower()
    if name not in MEDIA_TYPES:
        raise ApiError(415, f"content-type: must be one of {', '.join(MEDIA_TYPES)} (got {content_type[:80] or 'none'})")
    if encoding.lower() != "identity":
        raise ApiError(415, f"content-encoding: must be identity (got {encoding[:80]})")
    return name


def decode_json(field: str, content: bytes | memoryview | msgspec.Raw, kind: Any) -> Any:
    """Decode JSON into a type; an ``ApiError``, which names the field, is 400 for no JSON and 422 for JSON of another type."""
    try:
        return _decoder(kind).decode(content)
    except msgspec.ValidationError as error:
        message = str(error)
        if kind is Any:  # an integer of more digits than Python converts
            raise ApiError(400, f"{field}: must be JSON ({message})") from error
        size = len(memoryview(content))
        show = not message.startswith(TOO_LARGE) and size <= MAX_INLINE_BYTES
        raise _type_error(field, message, decode_json(field, content, Any) if show else None, kind, size) from error
    except RecursionError as error:
        raise ApiError(400, f"{field}: must be JSON (nested too deeply)") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ApiError(400, f"{field}: must be JSON ({error})") from error


def check_count(field: str, count: int, max_rows: int) -> None:
    """Raise an ``ApiError`` for an empty batch (422) or one that is too large (413)."""
    if count < 1:
        raise ApiError(422, f"{field}: must have at least one row (got an empty batch)")
    if count > max_rows:
        raise ApiError(413, f"{field}: must have at most {max_rows} rows (got {count})")


def check_rows(field: str, rows: NDArray[Any], spec: InputSpec) -> Rows:
    """The rows as float32; an ``ApiError`` (422) if their shape is not ``[n, *spec.shape]``, or an entry is not allowed."""
    if rows.shape[1:] != spec.shape:
        raise ApiError(422, f"{field}: must have shape {_shape(spec)} (got {list(rows.shape)})")
    if rows.dtype.kind == "f" and rows.dtype.itemsize == 2:
        rows = rows.astype(np.float32)  # in half precision, a bound of 70,000 would be infinite
    lowest, highest = (-MAX_FLOAT if spec.low is None else spec.low), (MAX_FLOAT if spec.high is None else spec.high)
    # NaN is in no range, and these take half of the time of the methods, which is long for a small row.
    in_bytes = rows.dtype == np.uint8
    above = (in_bytes and lowest <= 0) or np.minimum.reduce(rows, axis=None).item() >= lowest
    below = (in_bytes and highest >= 255) or np.maximum.reduce(rows, axis=None).item() <= highest
    if not (above and below):
        inside = (rows >= lowest) & (rows <= highest)
        raise _invalid_entry(field, f"a finite number{_range(spec)}", rows, inside)
    if spec.dtype == "uint8" and rows.dtype.kind == "f":
        whole = rows == np.rint(rows)
        if not whole.all():
            raise _invalid_entry(field, "a whole number", rows, whole)
    return np.ascontiguousarray(rows, dtype=np.float32)


def numbers_of_json(
    field: str, text: bytes, row_shape: Sequence[int], dtype: np.dtype[Any], count: int | None = None
) -> NDArray[Any] | None:
    """``parse_numbers``; an ``ApiError`` (422) names a wrong entry, or a row in a long text; None for other shapes."""
    try:
        return parse_numbers(text, row_shape, dtype, count)
    except NumbersError as error:
        name = f"{field}{''.join(f'[{index}]' for index in error.index)}"
        if error.message:
            raise _value_error(name, error.message, error.value) from error
        if len(text) > MAX_INLINE_BYTES:
            raise ApiError(422, f"{name}: must have shape {list(row_shape)} (got other lists)") from error
        return None


def _rows_of_lists(lists: list[Any], spec: InputSpec) -> NDArray[Any] | None:
    """The array of nested lists of numbers; None if its shape is not ``[n, *spec.shape]``, or a number fits in no float."""
    flat = lists
    for side in spec.shape:
        if not {side}.issuperset(map(len, flat)):
            return None
        flat = list(chain.from_iterable(flat))
    shape = len(lists), *spec.shape
    if flat and type(flat[0]) is int:
        with suppress(TypeError, ValueError):  # of whole numbers from 0 to 255, in a third of NumPy's time
            return np.frombuffer(bytes(flat), np.uint8).reshape(shape)
    with suppress(OverflowError, struct.error):
        return np.frombuffer(struct.pack(f"{len(flat)}d", *flat)).reshape(shape)  # in half of NumPy's time
    return None


def _rows_of_json(raw: msgspec.Raw, spec: InputSpec, max_rows: int) -> Rows:
    text = bytes(raw)
    rows = numbers_of_json("inputs", text, spec.shape, np.dtype(np.float64))
    if rows is None:  # raise what is wrong with the lists
        _check_lists("inputs", decode_json("body", text, Any), spec)
        decode_json("inputs", text, lists_of(float, len(spec.shape) + 1))
        raise invalid("inputs", f"numbers of shape {_shape(spec)}", decode_json("inputs", text, Any))
    check_count("inputs", len(rows), max_rows)
    return check_rows("inputs", rows, spec)


def check_lengths(field: str, value: object, shape: Sequence[int]) -> None:
    """Raise an ``ApiError`` (422) that names the first of nested lists whose length is not that of a shape."""
    if not isinstance(value, list) or len(value) != shape[0]:
        got = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
        raise ApiError(422, f"{field}: must be a list of {shape[0]} (got {got})")
    for index, entry in enumerate(value if len(shape) > 1 else ()):
        check_lengths(f"{field}[{index}]", entry, shape[1:])


def _check_lists(field: str, value: object, spec: InputSpec) -> None:
    if not isinstance(value, list):
        raise invalid(field, f"nested lists of shape {_shape(spec)}", value)
    sides: list[int] = []
    first: Any = value
    while isinstance(first, list) and len(sides) <= 32:
        sides.append(len(first))
        first = first[0] if first else None
    if sides[1:] != list(spec.shape):
        raise ApiError(422, f"{field}: must have shape {_shape(spec)} (got {sides})")
    check_lengths(field, value, sides)


def lists_of(kind: Any, depth: int) -> Any:
    """The type of lists nested so deep."""
    for _ in range(depth):
        kind = list[kind]
    return kind


def unknown_name(name: str, known: Iterable[str]) -> ApiError:
    """422: a field that does not exist; the error lists those that do."""
    names, name = list(known), name[:80]
    near = get_close_matches(name, names, 1)
    return ApiError(422, f"{name}: unknown field (known: {', '.join(names)}{f'; did you mean {near[0]}?' if near else ''})")


def _decode_texts(texts: Mapping[str, Sequence[str]], parameters: StreamParameters, known: Sequence[str] = ()) -> None:
    """Set the parameters of a query or a form; ``known`` are the other names that it may have."""
    for name in texts:
        if name not in StreamParameters.__struct_fields__:
            raise unknown_name(name, (*known, *StreamParameters.__struct_fields__))
        is_number = name in ("tolerance", "max_iterations", "deadline_ms")
        values = [_number_or_text(text) if is_number else text for text in texts[name]]
        setattr(parameters, name, values if len(values) > 1 else values[0])


def _number_or_text(text: str) -> object:
    try:
        return msgspec.json.decode(text, type=int | float)
    except msgspec.MsgspecError:
        return text


def _decode_body(
    body: bytes, content_type: str, media_type: str, spec: InputSpec, max_rows: int
) -> tuple["Rows | ImageBatch", StreamParameters]:
    """Decode a body into rows or images, and into parameters."""
    match media_type:
        case "application/json":
            return _decode_request(body, spec, max_rows)
        case "application/x-npy":
            return _rows_of_npy(body, spec, max_rows), StreamParameters()
        case multipart.MEDIA_TYPE:
            return _decode_form(body, content_type, spec, max_rows)
        case _:
            return ImageBatch({"body": body}, spec), StreamParameters()


def _decode_form(body: bytes, content_type: str, spec: InputSpec, max_rows: int) -> tuple["ImageBatch", StreamParameters]:
    files: list[bytes] = []
    texts: dict[str, list[str]] = {}
    parameters = StreamParameters()
    for name, content in multipart.parse_parts(body, content_type, max_rows * (1 + len(parameters.__struct_fields__))):
        if name == FILE:
            files.append(content)
        else:
            check_size(name, msgspec.Raw(content))
            texts.setdefault(name, []).append(content.decode(errors="replace"))
    _decode_texts(texts, parameters, [FILE])
    check_count(FILE, len(files), max_rows)
    return ImageBatch({f"{FILE}[{index}]": file for index, file in enumerate(files)}, spec), parameters


def _decode_request(body: bytes, spec: InputSpec, max_rows: int) -> tuple["Rows | ImageBatch", StreamParameters]:
    if len(body) <= MAX_INLINE_BYTES:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # which are raised again below, with a name
            request = _decoder(_body_type(len(spec.shape) + 1)).decode(body)
            if request.images is UNSET and request.inputs is not UNSET:
                rows = _rows_of_lists(request.inputs, spec)
                if rows is not None:
                    check_count("inputs", len(rows), max_rows)
                    return check_rows("inputs", rows, spec), request
    parameters, raw = StreamParameters(), decode_json("body", body, RawPredictRequest)
    for name in parameters.__struct_fields__:
        if (value := getattr(raw, name)) is not UNSET:
            setattr(parameters, name, _decode_value(name, value))
    if (raw.inputs is UNSET) == (raw.images is UNSET):
        raise ApiError(422, f"inputs, images: must be one of them (got {'neither' if raw.inputs is UNSET else 'both'})")
    if raw.images is UNSET:
        return _rows_of_json(raw.inputs, spec, max_rows), parameters
    return ImageBatch(_files(_decode_images(bytes(raw.images), max_rows), max_rows), spec), parameters


@lru_cache
def _body_type(depth: int) -> Any:
    body: Any = PredictRequest
    return body[lists_of(int | float, depth)]


def _decode_value(name: str, value: msgspec.Raw) -> Any:
    check_size(name, value)
    try:
        return _decoder(Any).decode(value)
    except msgspec.MsgspecError as error:
        if str(error).startswith(TOO_LARGE):
            raise _value_error(name, str(error), None) from error
        return decode_json("body", value, Any)  # raises
    except (RecursionError, UnicodeDecodeError):
        return decode_json("body", value, Any)


def check_size(field: str, value: msgspec.Raw | UnsetType) -> None:
    """Raise an ``ApiError`` (422) for a value that would take long to decode, where no long one is allowed."""
    if value is not UNSET and (size := len(memoryview(value))) > MAX_INLINE_BYTES:
        raise ApiError(422, f"{field}: must have at most {MAX_INLINE_BYTES} bytes (got {size})")


def _decode_images(text: bytes, max_rows: int) -> Any:
    if text.startswith(b"["):
        commas = text.count(b",") - text.count(b";base64,")
        check_count("images", commas + 1 if len(text) > 2 else 0, max_rows)
    else:
        check_size("images", msgspec.Raw(text))
    return decode_json("body", text, Any)


def _files(images: object, max_rows: int) -> dict[str, bytes]:
    if not isinstance(images, list):
        raise invalid("images", "a list of base64 strings or data: URIs", images)
    check_count("images", len(images), max_rows)
    files = {}
    for index, image in enumerate(images):
        try:
            start = match.end() if (match := _DATA_URI.match(image)) else 0
            files[f"images[{index}]"] = base64.b64decode(image[start:], validate=True)
        except (TypeError, ValueError) as error:
            raise invalid(f"images[{index}]", "base64 of a PNG or JPEG file, or a data: URI of it", image) from error
    return files


class ImageBatch:
    """The PNG and JPEG files of a request by their fields.

    Attributes:
        pixels: of all of them, from their headers; an ``ApiError`` is 413 for too many, 422 for what is no image.
    """

    def __init__(self, files: dict[str, bytes], spec: InputSpec) -> None:
        self._files, self._spec = files, spec
        self.pixels = 0
        for field, file in files.items():
            with _named(field):
                self.pixels += images.count_pixels(file, spec)
        if self.pixels > MAX_PIXELS_PER_REQUEST:
            raise ApiError(413, f"images: must have at most {MAX_PIXELS_PER_REQUEST} pixels together (got {self.pixels})")

    def decode(self, cancelled: Event) -> Rows:
        """The rows; an ``ApiError`` (422) for broken images, or if it takes too long. Stops when it is ``cancelled``."""
        deadline = time.monotonic() + MAX_IMAGE_SECONDS

        def check() -> None:
            if cancelled.is_set() or time.monotonic() > deadline:
                raise images.ImageError(f"must be decoded within {MAX_IMAGE_SECONDS:g} s (got an image that takes longer)")

        rows = []
        for field, file in self._files.items():
            with _named(field):
                check()
                rows.append(images.decode(file, self._spec, check))
        return np.stack(rows)


@contextmanager
def _named(field: str) -> Iterator[None]:
    try:
        yield
    except images.ImageError as error:
        raise ApiError(422, f"{field}: {error}") from error


def _rows_of_npy(body: bytes, spec: InputSpec, max_rows: int) -> Rows:
    """The header is checked before anything of the size that it states is allocated, and nothing is unpickled."""
    file = io.BytesIO(body)
    try:
        read_header = _NPY_HEADERS[np.lib.format.read_magic(file)]
        shape, fortran_order, dtype = read_header(file)
    except Exception as error:  # NumPy's header parser, with a tokenizer and literal_eval in it, raises anything
        raise ApiError(422, "body: must be a .npy file (got bytes whose header cannot be read)") from error
    if dtype.kind not in "iuf":
        raise ApiError(422, f"body: must be a .npy file of integers or floats (got dtype {dtype})")
    if shape[1:] != spec.shape or not all(type(side) is int for side in shape):  # NumPy takes True for a number
        raise ApiError(422, f"body: must have shape {_shape(spec)} (got {list(shape)})")
    check_count("body", shape[0], max_rows)
    size = math.prod(shape) * dtype.itemsize
    if size != len(body) - file.tell():
        raise ApiError(422, f"body: must have {size} bytes of {dtype} after the header (got {len(body) - file.tell()})")
    rows = np.frombuffer(body, dtype, offset=file.tell()).reshape(shape, order="F" if fortran_order else "C")
    return check_rows("body", rows, spec)


def _stop(value: object, model: ServedVersion) -> Stop:
    if value is UNSET or value == "tolerance":
        return "tolerance"
    if value != "label":
        raise invalid("stop", "one of tolerance, label", value)
    if model.label_stop is None:
        remedy = "python -m training evaluate calibrates them"
        raise invalid("stop", f"tolerance, as {model.model} has no label stops ({remedy})", value)
    return "label"


def _solver(value: object, stop: Stop, model: ServedVersion) -> str | None:
    """The requested solver; without one None, the model's own, or one that supports label stops if that does not."""
    if value is not UNSET and value not in model.solvers:
        raise invalid("solver", f"one of {', '.join(model.solvers)}", value)
    if stop == "label" and model.label_stop is not None:
        supported = model.label_stop.solvers
        if (model.config.serving.solver if value is UNSET else value) not in supported:
            if value is not UNSET:
                raise invalid("solver", f"one of {', '.join(supported)} with stop label", value)
            return supported[0]
    return None if value is UNSET else str(value)


def _session(value: object) -> str | None:
    if value is UNSET or value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SESSION_CHARACTERS:
        raise invalid("session", f"a string of 1 to {MAX_SESSION_CHARACTERS} characters", value)
    return value.encode(errors="replace").decode()  # JSON lets unpaired surrogates through, msgpack does not


def _traced(value: object, rows: int, *, streamed: bool) -> bool:
    if value is UNSET:
        return False
    if value != "state":
        raise invalid("trace", "state", value)
    if not streamed:
        raise ApiError(422, "trace: must be left out unless the request has the header accept: text/event-stream (got state)")
    if rows > MAX_TRACED_ROWS:
        raise ApiError(422, f"trace: must be left out of requests of more than {MAX_TRACED_ROWS} rows (got {rows} rows)")
    return True


def _per_row(
    name: str, value: Any, rows: int, kind: Callable[[Any], Scalar], low: float, high: float, requirement: str
) -> list[Scalar]:
    """One number per row, of a kind and within [low, high]."""
    if isinstance(value, list) and len(value) != rows:
        raise ApiError(422, f"{name}: must be a number or a list of {rows}, one per row (got a list of {len(value)})")
    for index, entry in enumerate(value if isinstance(value, list) else [value]):
        # To isinstance, true would be a number.
        if type(entry) not in (int, float) or not low <= entry <= high or (kind is int and entry % 1):
            raise invalid(f"{name}[{index}]" if isinstance(value, list) else name, requirement, entry)
    return [kind(entry) for entry in value] if isinstance(value, list) else [kind(value)] * rows


def _shape(spec: InputSpec) -> str:
    return f"[n, {', '.join(map(str, spec.shape))}]"


def _range(spec: InputSpec) -> str:
    if spec.low is None:
        return "" if spec.high is None else f" of at most {spec.high:g}"
    return f" of at least {spec.low:g}" if spec.high is None else f" within [{spec.low:g}, {spec.high:g}]"


def _invalid_entry(field: str, requirement: str, rows: NDArray[Any], good: NDArray[np.bool_]) -> ApiError:
    where = np.unravel_index(int(np.argmin(good)), good.shape)
    return invalid(f"{field}{''.join(f'[{index}]' for index in where)}", requirement, rows[where].item())


def _type_error(field: str, message: str, content: Any, kind: Any, size: int) -> ApiError:
    """What msgspec says of JSON of another type and some bytes, in the words of this API and with the value if it is short."""
    message, _, path = message.partition(" - at `$")
    name = f"{field}{path.rstrip('`')}".removeprefix("body.")
    if match := re.match(r"Object contains unknown field `(.*)`", message):
        known = () if path else getattr(kind, "__origin__", kind).__struct_fields__
        return unknown_name(match[1], known) if known else ApiError(422, f"{name}: unknown field {shown(match[1])}")
    if match := re.match(r"Object missing required field `(.*)`", message):
        return ApiError(422, f"{f'{name}.' if path else ''}{match[1]}: must be given (got nothing)")
    if size > MAX_INLINE_BYTES:
        content = f"a value in {size} bytes"
    elif not message.startswith(TOO_LARGE):
        for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
            content = content[key] if key else content[int(index)]
    return _value_error(name, message, content)


def _value_error(name: str, message: str, value: Any) -> ApiError:
    if message.startswith(TOO_LARGE):
        return ApiError(422, f"{name}: must be a number that fits in a float (got one that is too large)")
    match = re.match(r"Expected `([^`]*)`(?: ([<>]=? \S+?))?(?:, got .*)?$", message)
    if not match:
        return ApiError(422, f"{name}: {message}")
    types = [_TYPES.get(one, one) for one in match[1].split(" | ")]
    requirement = " or ".join(f"{'an' if one[0] in 'aeiou' else 'a'} {one}" for one in types)
    return invalid(name, f"{requirement} {match[2] or ''}".rstrip(), value)
