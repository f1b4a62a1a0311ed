"""What is asked, and what the right answers are."""

import json
from dataclasses import dataclass

import numpy as np
from torch import Tensor

import jfb
from benchmarks.serving.rows import Row

LOOSE, STRICT = 1e-1, 1e-4
EXACT = 1e-6
"""About as close as float32 comes to the fixed point."""


@dataclass(frozen=True)
class Question:
    """An image and a tolerance.

    A label is right if it is what ``jfb.predict`` answers to this tolerance, or at the exact fixed point: a server that goes on
    for longer than it was asked to must not be called wrong for that.
    """

    image: list[object]
    tolerance: float
    right: frozenset[str]


def ask_about(checkpoint: jfb.Checkpoint, images: Tensor) -> list[Question]:
    """Two questions an image, loose and strict, in an order that is always the same."""
    serving, classes = checkpoint.config.serving, checkpoint.config.classes

    def labels(tolerance: float) -> list[str]:
        found = jfb.predict(
            checkpoint.network, images.float(), tolerance=tolerance, max_iterations=1000, residual_norm=serving.residual_norm
        )
        return [classes[index] for index in found.logits.argmax(1).tolist()]

    exact = labels(EXACT)
    questions = [
        Question(image, tolerance, frozenset(pair))
        for tolerance in (LOOSE, STRICT)
        for image, *pair in zip(images.tolist(), labels(tolerance), exact, strict=True)
    ]
    return [questions[number] for number in np.random.default_rng(0).permutation(len(questions))]


def request(question: Question, row: Row) -> bytes:
    """The bytes that go over the wire."""
    body: object = {"inputs": [question.image], "tolerance": question.tolerance, **row.fields}
    content = json.dumps({row.wrapped_in: [body]} if row.wrapped_in else body, separators=(",", ":")).encode()
    head = (
        f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
