"""Samples: inputs to try a model with, which training left beside it."""

from pathlib import Path

import msgspec

from app.engine_client.catalogue import Model
from app.http.errors import Refusal
from app.inference import inputs
from app.schemas.native import Sample


def samples_of(model: Model, store: Path) -> list[Sample]:
    """What ``samples.json`` in a version's folder holds; none if it is not there, or not what the model takes."""
    try:
        content = (store / model.name / str(model.version) / "samples.json").read_bytes()
        samples = msgspec.json.decode(content, type=list[Sample])
        if samples:
            inputs.from_lists([one.input for one in samples], model.config.input, len(samples))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, Refusal):
        return []
    return [Sample(_shortest(one.input), one.label) for one in samples]


def _shortest(value: object) -> list[object]:
    """Nested numbers, the whole ones written as such: 5 is easier to read than 5.0."""

    def short(entry: object) -> object:
        if isinstance(entry, list):
            return [short(one) for one in entry]
        return int(entry) if isinstance(entry, float) and entry.is_integer() else entry

    assert isinstance(value, list)
    return [short(one) for one in value]
