"""The framing of binary tensors: for any lengths that a client states, the response is an immediate 4xx."""

import json
import socket
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.http.errors import ApiError
from app.inference import open_inference
from tests.app.routes.test_open_inference import HEADER, INFER
from tests.app.running import RunningServer, rejected

PIXELS = np.arange(64, dtype="<f4").reshape(1, 1, 8, 8) % 17
ROW = {"name": "inputs", "datatype": "FP32", "shape": [1, 1, 8, 8], "parameters": {"binary_data_size": 256}}
TOLERANCE = {"name": "tolerance", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
GOOD = {"inputs": [ROW, TOLERANCE], "parameters": {"binary_data_output": True}}
TAIL = PIXELS.tobytes() + np.float32(1e-3).tobytes()

many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def post(server: RunningServer, content: bytes, header_length: object) -> httpx.Response:
    return server.client.post(INFER, content=content, headers={HEADER: str(header_length)}, timeout=10)


def framed(server: RunningServer, content: object, tail: bytes = TAIL) -> httpx.Response:
    header = json.dumps(content).encode()
    return post(server, header + tail, len(header))


def test_without_the_header_the_whole_body_is_json_and_with_it_the_rest_is_tensors() -> None:
    body, tail = open_inference.split(b'{"inputs": []}', None)
    assert (body.inputs, bytes(tail)) == ([], b"")
    body, tail = open_inference.split(b'{"inputs": []}abc', "14")
    assert (body.inputs, bytes(tail)) == ([], b"abc")


@pytest.mark.parametrize("length", ["", "-1", "+2", "2.0", "0x2", "two", " 2", "3", "9" * 30, "9" * 5000, "²", "٢"])
def test_header_lengths_that_are_none_or_too_long_are_rejected(length: str) -> None:
    with pytest.raises(ApiError, match=HEADER):
        open_inference.split(b"{}", length)


def test_the_answer_to_a_good_request_is_framed_in_the_same_way(server: RunningServer) -> None:
    answer = framed(server, GOOD)
    length = int(answer.headers[HEADER])
    assert answer.headers["content-type"] == "application/octet-stream"
    header, tail = json.loads(answer.content[:length]), answer.content[length:]
    assert [output["parameters"]["binary_data_size"] for output in header["outputs"]] == [40, 8, 4, 1]
    assert len(tail) == 53
    row = server.predict({"inputs": PIXELS.tolist()}).json()["predictions"][0]
    assert int(np.frombuffer(tail[:40], "<f4").argmax()) == row["index"]
    assert int.from_bytes(tail[40:48], "little") == row["iterations"]
    assert np.frombuffer(tail[48:52], "<f4")[0] == pytest.approx(row["residual"], rel=1e-4)
    assert tail[52] == 1


def sized(size: object, tensor: dict[str, Any] = ROW) -> dict[str, Any]:
    return tensor | {"parameters": {"binary_data_size": size}}


@pytest.mark.parametrize(
    ("content", "tail", "parts"),
    [
        (GOOD, TAIL[:-1], ("body: ", "260 bytes", "got 259")),
        (GOOD, TAIL + b"x", ("body: ", "260 bytes", "got 261")),
        (GOOD, b"", ("body: ", "260 bytes", "got 0")),
        (
            {"inputs": [sized(252), sized(8, TOLERANCE)]},
            TAIL,
            ("inputs[0].parameters.binary_data_size: ", "must be 256", "got 252"),
        ),
        ({"inputs": [sized(2**62), TOLERANCE]}, TAIL, ("body: ", str(2**62 + 4))),
        ({"inputs": [sized(2**200), TOLERANCE]}, TAIL, ("inputs[0].parameters.binary_data_size: ", f"<= {2**63 - 1}")),
        ({"inputs": [sized(-4), sized(264, TOLERANCE)]}, TAIL, ("inputs[0].parameters.binary_data_size",)),
        (
            {"inputs": [sized(256.5), TOLERANCE]},
            TAIL,
            ("inputs[0].parameters.binary_data_size", "must be an integer", "got 256.5"),
        ),
        (
            {"inputs": [sized("256"), TOLERANCE]},
            TAIL,
            ("inputs[0].parameters.binary_data_size", "must be an integer", 'got "256"'),
        ),
        ({"inputs": [sized(True), TOLERANCE]}, TAIL, ("inputs[0].parameters.binary_data_size", "must be an integer", "got true")),
        (
            {"inputs": [ROW | {"shape": [2**40, 1, 8, 8]}, TOLERANCE]},
            TAIL,
            ("inputs[0].parameters.binary_data_size: ", str(2**48)),
        ),
        ({"inputs": [ROW | {"datatype": "FP64"}, TOLERANCE]}, TAIL, ("inputs[0].parameters.binary_data_size: ", "must be 512")),
        ({"inputs": [ROW | {"data": [0] * 64}, TOLERANCE]}, TAIL, ("inputs[0]: ", "got both")),
        ({"inputs": [ROW]}, TAIL, ("body: ", "256 bytes", "got 260")),
        ({"inputs": [TOLERANCE, ROW]}, TAIL, ("tolerance[0]: ", "got 0")),
        ({"inputs": [ROW, TOLERANCE]}, TAIL[:256] + b"\x00\x00\xc0\x7f", ("tolerance[0]: ", "NaN")),
    ],
)
def test_lengths_that_do_not_fit_are_400(server: RunningServer, content: object, tail: bytes, parts: tuple[str, ...]) -> None:
    rejected(framed(server, content, tail), 400, *parts)


def test_a_body_shorter_than_announced_ends_with_the_connection_and_delays_no_other_request(server: RunningServer) -> None:
    url = httpx.URL(server.url)
    header = json.dumps(GOOD).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: t\r\ncontent-length: {len(header) + 260}\r\n{HEADER}: {len(header)}\r\n\r\n"
    with socket.create_connection((url.host, url.port or 80)) as sock:
        sock.sendall(head.encode() + header + TAIL[:100])
    assert framed(server, GOOD).status_code == 200


@many
@given(st.data())
def test_any_framing(server: RunningServer, data: st.DataObject) -> None:
    sizes = st.integers(-300, 600) | st.sampled_from([2**31, 2**32, 2**63, 2**64, 2**200])
    content = {"inputs": [sized(data.draw(sizes | st.just(256))), sized(data.draw(sizes | st.just(4)), TOLERANCE)]}
    header = json.dumps(content).encode()
    tail = data.draw(st.binary(max_size=600) | st.just(TAIL))
    length = data.draw(st.just(len(header)) | st.integers(-1, len(header) + 700) | st.integers(0, 2**70))
    answer = post(server, header + tail, length)
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        assert [one["parameters"]["binary_data_size"] for one in content["inputs"]] == [256, 4]


@many
@given(where=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=5), cut=st.integers(0, 400))
def test_damaged_requests(server: RunningServer, where: list[tuple[int, int]], cut: int) -> None:
    header = json.dumps(GOOD).encode()
    content = bytearray(header + TAIL)
    for place, value in where:
        content[place % len(content)] = value
    answer = post(server, bytes(content[: len(content) - cut]), len(header))
    assert answer.status_code in (200, 400, 413)
