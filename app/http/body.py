"""The body of a request: its type, and its bytes within the limit."""

import asyncio
import zlib

from fastapi import Request

from app.http.errors import Refusal
from app.settings import Settings

KNOWN_TYPES = ("application/json", "application/x-npy", "image/png", "image/jpeg")


def media_type(request: Request) -> str:
    """The body's content type, without its parameters.

    Raises:
        Refusal: 415 if it is not one of ``KNOWN_TYPES``, or the body is compressed.
    """
    header = request.headers.get("content-type", "")
    name = header.partition(";")[0].strip().lower()
    if name not in KNOWN_TYPES:
        raise Refusal(415, f"content-type: expected one of {', '.join(KNOWN_TYPES)}, got {header[:80] or 'none'}")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refusal(415, f"content-encoding: expected identity, got {encoding[:80]}")
    return name


async def read(request: Request, settings: Settings) -> bytes:
    """The bytes of the body.

    Raises:
        Refusal: 408 if they take longer than ``body_timeout``; 413 as soon as it is known that there are more than
            ``max_body_bytes``: from the header, or on the way.
        ClientDisconnect: if the client leaves before the end.
    """
    limit, seconds = settings.max_body_bytes, settings.body_timeout
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise Refusal(413, f"body: expected at most {limit} bytes, got {declared}")
    chunks = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise Refusal(413, f"body: expected at most {limit} bytes, got more")
                chunks.append(chunk)
    except TimeoutError as error:
        message = f"body: expected all of it within {seconds:g} s, got {size} bytes"
        raise Refusal(408, message, {"connection": "close"}) from error  # or the rest would be waited for
    return b"".join(chunks)


def decompress(content: bytes, encoding: str, limit: int) -> bytes:
    """Undo a content encoding.

    Raises:
        Refusal: 413 if there are more than ``limit`` bytes then, and no more than that are ever produced; 415 for an encoding
            other than identity, gzip and deflate; 400 for bytes that are not so encoded.
    """
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return content
    if encoding not in ("gzip", "deflate"):
        raise Refusal(415, f"content-encoding: expected identity, gzip or deflate, got {encoding[:80]}")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # which tells the two apart by itself
    try:
        plain = stream.decompress(content, limit + 1)
    except zlib.error as error:
        raise Refusal(400, f"body: expected {encoding}, got bytes that cannot be decompressed") from error
    if len(plain) > limit:
        raise Refusal(413, f"body: expected at most {limit} bytes when decompressed, got more")
    if not stream.eof or stream.unused_data:
        raise Refusal(400, f"body: expected one whole {encoding} stream, got {'less' if not stream.eof else 'more'}")
    return plain
