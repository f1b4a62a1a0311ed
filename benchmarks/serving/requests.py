"""The requests that the clients send, and the labels that count as correct."""

import json
from dataclasses import dataclass

import numpy as np
from torch import Tensor

import jfb
from benchmarks.serving.rows import Row

LOOSE, STRICT = 1e-1, 1e-4
FIXED_POINT_TOLERANCE = 1e-6
"""About as close as float32 comes to the fixed point."""


@dataclass(frozen=True)
class Request:
    """An image and a tolerance.

    A label is correct if ``jfb.predict`` returns it at this tolerance or at the fixed point: a server may iterate for longer than
    the tolerance requires.
    """

    image: list[object]
    tolerance: float
    correct_labels: frozenset[str]


def make_requests(checkpoint: jfb.Checkpoint, images: Tensor) -> list[Request]:
    """Two requests per image, loose and strict, shuffled with a fixed seed."""
    serving, classes = checkpoint.config.serving, checkpoint.config.classes

    def labels(tolerance: float) -> list[str]:
        found = jfb.predict(
            checkpoint.network, images.float(), tolerance=tolerance, max_iterations=1000, residual_norm=serving.residual_norm
        )
        return [classes[index] for index in found.logits.argmax(1).tolist()]

    at_fixed_point = labels(FIXED_POINT_TOLERANCE)
    requests = [
        Request(image, tolerance, frozenset(pair))
        for tolerance in (LOOSE, STRICT)
        for image, *pair in zip(images.tolist(), labels(tolerance), at_fixed_point, strict=True)
    ]
    return [requests[number] for number in np.random.default_rng(0).permutation(len(requests))]


def encode(request: Request, row: Row) -> bytes:
    """The HTTP/1.1 bytes of a request to the server of a row."""
    body: object = {"inputs": [request.image], "tolerance": request.tolerance, **row.fields}
    content = json.dumps({row.wrapped_in: [body]} if row.wrapped_in else body, separators=(",", ":")).encode()
    head = (
        f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
