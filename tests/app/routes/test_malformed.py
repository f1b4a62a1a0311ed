"""Arbitrary bytes from a client: never a 5xx, and a valid request at the same time succeeds."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.app.running import RunningServer

TYPES = ["application/json", "application/x-npy", "image/png", "image/jpeg"]
GOOD = {"inputs": np.zeros((1, 1, 8, 8)).tolist()}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, 1e308, -0.0, 2**63]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
names = st.sampled_from(["inputs", "images", "tolerance", "max_iterations", "deadline_ms"])
many = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def numpy_file() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((1, 1, 8, 8), np.uint8))
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some bytes changed, and perhaps cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 6))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


def check(server: RunningServer, content: bytes, headers: dict[str, str], query: str = "") -> httpx.Response:
    """Send a request, and a valid one at the same time."""
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(server.client.post, f"/predict{query}", content=content, headers=headers)
        good = pool.submit(server.predict, GOOD)
    assert good.result().status_code == 200
    answer = bad.result()
    error = answer.json().get("error", "")
    # A deadline of one nanosecond is valid but cannot be met: its response is 504.
    assert answer.status_code < 500 or (answer.status_code == 504 and error.startswith("deadline_ms: ")), answer.text
    assert answer.status_code == 200 or ": " in error
    return answer


@many
@given(content=st.binary(max_size=300), kind=st.sampled_from(TYPES))
def test_any_bytes(server: RunningServer, content: bytes, kind: str) -> None:
    assert check(server, content, {"content-type": kind}).status_code in (400, 422)


@many
@given(content=st.dictionaries(names | st.text(max_size=5), values, max_size=4) | values)
def test_any_json(server: RunningServer, content: object) -> None:
    check(server, json.dumps(content).encode(), {"content-type": "application/json"})


@many
@given(parameters=st.dictionaries(names.filter(lambda name: name not in ("inputs", "images")), values, max_size=3))
def test_any_parameters_with_good_inputs(server: RunningServer, parameters: dict[str, object]) -> None:
    check(server, json.dumps(GOOD | parameters).encode(), {"content-type": "application/json"})


@many
@given(content=damaged(numpy_file()))
def test_damaged_npy_files(server: RunningServer, content: bytes) -> None:
    check(server, content, {"content-type": "application/x-npy"})


@many
@given(content=damaged(json.dumps(GOOD).encode()))
def test_damaged_json(server: RunningServer, content: bytes) -> None:
    check(server, content, {"content-type": "application/json"})


@many
@given(query=st.text(max_size=20), kind=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_any_query_and_content_type(server: RunningServer, query: str, kind: str) -> None:
    check(server, numpy_file(), {"content-type": kind.strip()}, f"?{httpx.QueryParams({'tolerance': query})}")
