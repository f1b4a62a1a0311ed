"""The framing of the Open Inference Protocol's binary tensor extension: a JSON header, then the tensors' raw bytes."""

from collections.abc import Sequence

from app.http.errors import Refusal, expected

HEADER = "inference-header-content-length"
"""The HTTP header that says how many bytes of a body are JSON; without it, all are."""


def split(body: bytes, header_length: str | None) -> tuple[memoryview, memoryview]:
    """A body's JSON and what follows it.

    Args:
        body: of the request.
        header_length: the value of ``HEADER``.

    Raises:
        Refusal: 422 for a length that is none, or longer than the body.
    """
    whole = memoryview(body)
    if header_length is None:
        return whole, whole[:0]
    if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 20):
        raise expected(HEADER, "a number of bytes", header_length)
    length = int(header_length)
    if length > len(body):
        raise expected(HEADER, f"at most the {len(body)} bytes of the body", length)
    return whole[:length], whole[length:]


def cut(tail: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """The tensors that lie one behind the other after the JSON.

    Args:
        tail: what follows the JSON.
        sizes: bytes of each tensor, not negative.

    Raises:
        Refusal: 422 if they are not exactly what is there.
    """
    if sum(sizes) != len(tail):
        raise Refusal(422, f"body: expected {sum(sizes)} bytes of tensors after the JSON, got {len(tail)}")
    parts = []
    for size in sizes:
        parts.append(tail[:size])
        tail = tail[size:]
    return parts


def join(header: bytes, tensors: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """The body of an answer and the HTTP headers that say how to read it."""
    if not tensors:
        return header, {"content-type": "application/json"}
    return b"".join([header, *tensors]), {"content-type": "application/octet-stream", HEADER: str(len(header))}
