"""The decoders of requests with damaged input: an error that names what is wrong, or a request that is valid.

``corpus/`` has the input to start from, a folder for each decoder. All of it is tried each time, and for a minute what Hypothesis
makes of it.
"""

import asyncio
import random
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from app.engine_client.messages import Request, ServedVersion
from app.http.connection import bounded_connections
from app.http.errors import ApiError
from app.inference import open_inference
from app.inference.decoding import ImageBatch, build_request, decode_predict
from app.settings import Settings
from tests.app.posted import posted
from tests.app.store import DIGITS

CORPUS = Path(__file__).parent / "corpus"
SECONDS_PER_DECODER = 12.0
MODEL = ServedVersion("digits", 1, DIGITS.model_dump_json(), "f", 0.0, ("picard", "anderson"))
SETTINGS = Settings(max_rows_per_request=8)
STRINGS = [
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b'"',
    b"true",
    b"null",
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"9" * 4300,
    b"\xff",
    b"\0",
    b"\r\n",
]
STRINGS += [
    b"transfer-encoding: chunked\r\n",
    b"content-length: 5\r\n",
    b"host: t\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"\xff\xda",
    b"IDAT",
    b"-1",
    b"--b",
    b"--b--",
]


@pytest.fixture(autouse=True)
def _good_client_is_answered() -> None:
    """Not here: these tests start no server."""


@cache
def corpus(decoder: str) -> list[bytes]:
    files = [file.read_bytes() for file in sorted((CORPUS / decoder).iterdir())]
    assert files
    return files


@st.composite
def damaged(draw: st.DrawFn, decoder: str) -> bytes:
    """Input of the corpus with some parts replaced, removed, repeated or inserted."""
    content = draw(st.sampled_from(corpus(decoder)))
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 16)))
        new = draw(st.binary(max_size=4) | st.sampled_from(STRINGS) | st.just(content[start:end] * 2))
        content = content[:start] + new + content[end:]
    return content


def check_request(decode: Callable[[], Request]) -> None:
    try:
        request = decode()
    except ApiError as error:
        refusal = error
    else:
        check_rows(request)
        return
    assert refusal.status_code in (400, 413, 415, 422)
    assert ": " in refusal.detail


def check_rows(request: Request) -> None:
    rows = np.frombuffer(request.inputs, np.float32).reshape(-1, 1, 8, 8)
    assert 1 <= len(rows) <= 8
    assert ((rows >= 0) & (rows <= 16)).all()
    assert len(request.tolerance) == len(request.max_iterations) == len(request.deadline) == len(rows)
    assert all(tolerance > 0 for tolerance in request.tolerance)
    assert all(1 <= cap <= SETTINGS.max_iterations_limit for cap in request.max_iterations)


def check_predict(media_type: str, body: bytes) -> None:
    http = posted(body, media_type, SETTINGS)
    check_request(lambda: asyncio.run(decode_predict(http, 0.0, MODEL)))


def check_infer(content: bytes) -> None:
    """The first line is the length of the JSON."""
    length, _, body = content.partition(b"\n")

    def decode() -> Request:
        infer, tail = open_inference.split(body, length.decode("latin-1"))
        open_inference.requested_outputs(infer)
        rows, parameters = open_inference.decode_infer(infer, tail, MODEL, SETTINGS)
        decoded = rows.decode(Event()) if isinstance(rows, ImageBatch) else rows
        return asyncio.run(build_request(posted(b"", "application/json", SETTINGS), decoded, parameters, MODEL, 0.0))

    check_request(decode)


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    content = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(content)).encode())]})
    await send({"type": "http.response.body", "body": content})


def check_head(content: bytes) -> None:
    """What a connection answers is whole responses, and it ends."""

    async def exchange() -> bytes:
        loop, state = asyncio.get_running_loop(), ServerState()
        config = Config(_echo, http=bounded_connections(2.0), log_config=None, access_log=False)
        config.load()
        connection = config.http_protocol_class
        server = await loop.create_server(lambda: connection(config, state, {}), "127.0.0.1")
        async with server, asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(content)
            writer.write_eof()
            received = await reader.read()
            writer.close()
            return received

    received = asyncio.run(exchange())
    while received:
        match = re.match(rb"HTTP/1\.1 (\d+) [^\r]*\r\n(?:[^\r\n]+\r\n)*\r\n", received)
        assert match, received
        assert match[1] in (b"100", b"200", b"400", b"408", b"431", b"501", b"505")
        length = re.search(rb"content-length: (\d+)", match[0])
        received = received[match.end() + int(length[1] if length else 0) :]


CHECKS: dict[str, Callable[[bytes], None]] = {
    "npy": lambda body: check_predict("application/x-npy", body),
    "json": lambda body: check_predict("application/json", body),
    "images": lambda body: check_predict("image/png", body),
    "forms": lambda body: check_predict("multipart/form-data; boundary=b", body),
    "infer": check_infer,
    "head": check_head,
}


@pytest.mark.parametrize("decoder", CHECKS)
def test_the_corpus_is_refused_or_valid(decoder: str) -> None:
    for content in corpus(decoder):
        CHECKS[decoder](content)


@pytest.mark.long
@pytest.mark.parametrize("decoder", CHECKS)
def test_damaged_input_is_refused_or_valid(decoder: str) -> None:
    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damaged(decoder))
    def check(content: bytes) -> None:
        CHECKS[decoder](content)

    generator, end = random.Random(), time.monotonic() + SECONDS_PER_DECODER
    while time.monotonic() < end:
        data = generator.randbytes(2048)
        try:
            check.hypothesis.fuzz_one_input(data)
        except Exception as error:
            error.add_note(f"reproduce with fuzz_one_input({data.hex()})")
            raise
