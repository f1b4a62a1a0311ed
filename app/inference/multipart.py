"""multipart/form-data (RFC 7578): a body to its parts, in work that their number bounds."""

import logging
import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.http.errors import ApiError

MEDIA_TYPE = "multipart/form-data"
PART_COST = 16
"""How many bytes of another body take as long as one byte of small parts."""
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a client hears what is wrong with its body


def parse_parts(body: bytes, content_type: str, max_parts: int) -> list[tuple[str, bytes]]:
    """The name and the content of each part, in order.

    An ``ApiError`` is 400 for what is no complete multipart body, 413 for too many parts, before any is parsed.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not re.fullmatch(rb"[ -~]{1,70}", boundary):
        raise ApiError(400, "content-type: must have a boundary of 1 to 70 ASCII characters (got none, or another)")
    if (count := body.count(b"\r\n--" + boundary)) > max_parts:
        raise ApiError(413, f"body: must have at most {max_parts} parts (got {count})")
    parts: list[tuple[str, bytes]] = []
    name, content, header, ended = "", b"", b"", False

    def begin() -> None:
        nonlocal name, content
        name, content = "", b""

    def field(data: bytes, start: int, end: int) -> None:
        nonlocal header
        header = data[start:end].lower()

    def value(data: bytes, start: int, end: int) -> None:
        nonlocal name
        if header == b"content-disposition":
            name = parse_options_header(data[start:end].decode("latin-1"))[1].get(b"name", b"").decode(errors="replace")

    def fill(data: bytes, start: int, end: int) -> None:
        nonlocal content
        content = data[start:end]

    def finish() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": field,
            "on_header_value": value,
            "on_part_data": fill,
            "on_part_end": lambda: parts.append((name, content)),
            "on_end": finish,
        },
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise ApiError(400, f"body: must be {MEDIA_TYPE} ({error})") from error
    if not all(name for name, _ in parts):
        raise ApiError(400, "body: must name every part in its content-disposition (got a part without a name)")
    if not ended:
        raise ApiError(400, f"body: must be {MEDIA_TYPE} with this boundary (got a body that ends before its last part does)")
    return parts
