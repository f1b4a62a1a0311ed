"""The body of a request: its type, and its bytes within the limit."""

from fastapi import Request

from app.errors import Refusal

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


async def read(request: Request, limit: int) -> bytes:
    """The bytes of the body.

    Raises:
        Refusal: 413 as soon as it is known that there are more than ``limit``: from the header, or on the way.
        ClientDisconnect: if the client leaves before the end.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise Refusal(413, f"body: expected at most {limit} bytes, got {declared}")
    chunks = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise Refusal(413, f"body: expected at most {limit} bytes, got more")
        chunks.append(chunk)
    return b"".join(chunks)
