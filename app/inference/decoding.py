"""Work: what a predict request asks for, from any of the bodies that it may come in."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from starlette.datastructures import QueryParams

from app.engine_client.catalogue import Model
from app.http.errors import Refusal, expected, shown
from app.inference import images, inputs, parameters
from app.inference.inputs import Rows
from app.inference.parameters import Parameters
from app.settings import Settings

LONGEST_SESSION = 128
"""Characters that the name of a session may have."""


@dataclass(frozen=True)
class Work:
    """n checked rows, and how each is to be solved."""

    inputs: Rows
    parameters: Parameters
    session: str | None = None
    """Whose rows these are, for a warm start."""


async def read(body: bytes, media_type: str, query: QueryParams, model: Model, settings: Settings) -> Work:
    """Parse and check a body and the parameters that come with it.

    The parameters may stand in the query string whatever the body is; those in a JSON body go before.

    Raises:
        Refusal: 400 for what is not JSON, 413 for too many rows, 422 for everything that is not as it should be.
    """
    given = _from_query(query)
    session: object = query.get("session")
    spec, max_rows = model.config.input, settings.max_rows_per_request
    match media_type:
        case "application/json":
            content = _from_json(body)
            if "inputs" in content:
                rows = inputs.from_lists(content["inputs"], spec, max_rows)
            else:
                rows = await asyncio.to_thread(images.from_base64, content["images"], spec, max_rows)
            session = content.get("session", session)
            given |= {name: content[name] for name in parameters.NAMES if name in content}
        case "application/x-npy":
            rows = inputs.from_npy(body, spec, max_rows)
        case _:
            rows = (await asyncio.to_thread(images.from_file, "body", body, spec))[None]
    asked = parameters.read(given, len(rows), model, settings.max_iterations_limit)
    return Work(rows, asked, check_session(session))


def check_session(value: object) -> str | None:
    """The name of a session, or None if there is none.

    Raises:
        Refusal: 422 for what is no text, or too long.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_SESSION:
        raise expected("session", f"a text of 1 to {LONGEST_SESSION} characters", value)
    return value.encode(errors="replace").decode()  # JSON lets half a surrogate pair through, msgpack does not


def _from_json(body: bytes) -> Mapping[str, object]:
    content = _decode(body)
    if not isinstance(content, dict):
        raise expected("body", "an object with inputs or images", content)
    _check_names(content, ("inputs", "images", "session", *parameters.NAMES))
    if ("inputs" in content) == ("images" in content):
        raise Refusal(422, f"inputs, images: expected one of them, got {'both' if 'inputs' in content else 'neither'}")
    return content


def _decode(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except RecursionError as error:
        raise Refusal(400, "body: expected JSON, got lists nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as malformed:
        # NaN, Infinity and numbers like 1e999 are no JSON, but many programs write them. Python's slower parser reads them,
        # so that the answer can name the entry instead of a byte.
        try:
            return json.loads(body.decode())
        except (ValueError, RecursionError):
            raise Refusal(400, f"body: expected JSON, got something else: {malformed}") from malformed


def _from_query(query: QueryParams) -> dict[str, object]:
    _check_names(query, ("session", *parameters.NAMES))
    values = {name: [_number_or_text(text) for text in query.getlist(name)] for name in query if name != "session"}
    return {name: several if len(several) > 1 else several[0] for name, several in values.items()}


def _number_or_text(text: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float) else text


def _check_names(given: Mapping[str, object] | QueryParams, known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise Refusal(422, f"{name[:80]}: expected one of {', '.join(known)}, got the unknown key {shown(name)}")
