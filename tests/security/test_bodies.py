"""Attacks with bodies: JSON that is large, deep or nearly right, numbers of any size, compressed bombs, headers of .npy."""

import gzip
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.app.running import RunningServer, connected, rejected
from tests.security.conftest import resident_bytes

MB = 1024 * 1024
JSON = {"content-type": "application/json"}
NPY = {"content-type": "application/x-npy"}
INFER = "/v2/models/digits/infer"
ROW = np.zeros((1, 8, 8)).tolist()
NINES = "9" * 4300
PARAMETERS = {"max_iterations": 5, "tolerance": 0.3}
TENSOR = {"name": "inputs", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64}


def filled(begin: bytes, lump: bytes, end: bytes, size: int = 12 * MB) -> bytes:
    """JSON of some size."""
    return begin + lump * ((size - len(begin) - len(end)) // len(lump)) + end


def with_last_entry(text: str) -> bytes:
    rows = json.dumps([ROW] * 1023 + [np.zeros((1, 8, 8)).tolist()]).encode()
    return b'{"inputs": ' + rows.replace(b"0.0", b"0.0" + b"0" * 20)[:-27] + text.encode() + b"]]]]}"


LARGE: dict[str, tuple[str, Callable[[], bytes], int, str]] = {
    "empty lists": ("/predict", lambda: filled(b'{"inputs": [', b"[],", b"[]]}"), 422, "inputs[0]: must have shape [1, 8, 8]"),
    "empty lists, NaN": (
        "/predict",
        lambda: filled(b'{"inputs": [', b"[],", b"NaN]}"),
        400,
        "body: must be JSON (JSON is malformed: inv",
    ),
    "objects": ("/predict", lambda: filled(b'{"inputs": [', b'{"a":{}},', b"{}]}"), 422, "inputs[0]: must have shape [1, 8, 8]"),
    "no object": ("/predict", lambda: filled(b"[", b'{"a":{}},', b"{}]"), 422, "body: must be an object (got "),
    "one row": ("/predict", lambda: filled(b'{"inputs": [[[[', b"0,", b"0]]]]}"), 422, "inputs[0]: must have shape [1, 8, 8]"),
    "many rows": (
        "/predict",
        lambda: filled(b'{"inputs": [', json.dumps(ROW).encode() + b",", b"[]]}"),
        422,
        "]: must have shape [1, 8",
    ),
    "parameter": (
        "/predict",
        lambda: filled(b'{"inputs": [], "session": [', b"{},", b"{}]}"),
        422,
        "session: must have at most 262144 bytes",
    ),
    "name": ("/predict", lambda: filled(b'{"', b"inputs", b'": 1}'), 422, "inputsinputs"),
    "images": ("/predict", lambda: filled(b'{"images": [', b"[],", b"[]]}"), 413, "images: must have at most 1024 rows"),
    "last entry": ("/predict", lambda: with_last_entry('"x"'), 422, 'inputs[1023][0][7][7]: must be a number (got "x")'),
    "last entry, NaN": (
        "/predict",
        lambda: with_last_entry("NaN"),
        400,
        "body: must be JSON (JSON is malformed: invalid character (byte",
    ),
    "last list": ("/predict", lambda: with_last_entry("0,0"), 422, "inputs[1023]: must have shape [1, 8, 8]"),
    "tensors": (INFER, lambda: filled(b'{"inputs": [', b"{},", b"{}]}"), 400, "inputs[0].name: must be given"),
    "tensor": (
        INFER,
        lambda: filled(b'{"inputs": [%s, "data": [' % json.dumps(TENSOR)[:-1].encode(), b"[],", b"[]]}]}"),
        400,
        "inputs[0].data[",
    ),
    "shape": (
        INFER,
        lambda: filled(b'{"inputs": [{"name": "inputs", "datatype": "FP32", "data": [0], "shape": [', b"1,", b"1]}]}"),
        400,
        "inputs[0].shape: ",
    ),
    "outputs": (
        INFER,
        lambda: filled(b'{"inputs": [], "outputs": [', b'{"name":""},', b"{}]}"),
        400,
        "outputs: must have at most 262144",
    ),
    "npy": ("/predict", lambda: b"\x93NUMPY\x01\x00\xff\x7f".ljust(30 * MB), 422, "body: must be a .npy file"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_malformed_body_is_refused_where_it_is_wrong(server: RunningServer, name: str) -> None:
    path, body, status, error = LARGE[name]
    rejected(server.client.post(path, content=body(), headers=NPY if name == "npy" else JSON), status, error)


def test_many_large_bodies_at_once_are_parsed_one_after_the_other(server: RunningServer) -> None:
    before = resident_bytes(server.worker_pid())
    bodies = [LARGE[name][1]() for name in ("empty lists", "objects", "one row", "many rows")]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda body: server.client.post("/predict", content=body, headers=JSON).status_code, bodies))
    assert answers == [422] * 4
    assert resident_bytes(server.worker_pid()) - before < 700 * MB


def test_a_large_valid_body_has_the_answers_of_its_rows(server: RunningServer) -> None:
    rows = np.random.default_rng(3).integers(0, 17, (1024, 1, 8, 8)).astype(float)
    body = json.dumps({"inputs": rows.tolist()} | PARAMETERS, indent=1).encode()
    assert len(body) > MB / 2
    tensor = TENSOR | {"shape": list(rows.shape), "data": rows.tolist()}
    large = server.client.post("/predict", content=body, headers=JSON).json()["predictions"]
    infer = server.client.post(INFER, json={"inputs": [tensor], "parameters": PARAMETERS}).json()["outputs"]
    alone = [
        server.predict({"inputs": rows[row : row + 1].tolist()} | PARAMETERS).json()["predictions"][0] for row in (0, 511, 1023)
    ]
    assert [large[row]["label"] for row in (0, 511, 1023)] == [one["label"] for one in alone]
    assert [large[row]["iterations"] for row in (0, 511, 1023)] == [one["iterations"] for one in alone]
    assert infer[1]["data"] == [one["iterations"] for one in large]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_bomb_is_refused_at_the_limit(server: RunningServer, encoding: str) -> None:
    bomb = gzip.compress(bytes(40 * MB))
    answer = server.client.post(INFER, content=bomb, headers={"content-encoding": encoding})
    rejected(answer, 413, "body: must have at most 33554432 bytes when decompressed")


def npy(header: str, version: bytes = b"\x01\x00", data: bytes = b"") -> bytes:
    text = header.encode().ljust(300) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little") + text + data


def header(shape: object, dtype: str = "'<f4'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (npy(header("(True, 1, 8, 8)"), data=bytes(256)), "body: must have shape [n, 1, 8, 8]"),
        (npy(header("(1, True, 8, 8)"), data=bytes(256)), "body: must have shape [n, 1, 8, 8]"),
        (npy(header("(1.0, 1, 8, 8)"), data=bytes(256)), "body: must be a .npy file"),
        (npy(header("(-1, 1, 8, 8)"), data=bytes(256)), "body: must have at least one row"),
        (npy(header("()"), data=bytes(4)), "body: must have shape [n, 1, 8, 8]"),
        (npy(header(f"({NINES[:250]}, 1, 8, 8)")), "body: must have at most 1024 rows"),
        (npy(header("(1, 1, 8, 8)"), b"\x09\x09", bytes(256)), "body: must be a .npy file"),
        (npy(header("(1, 1, 8, 8)"), b"\x00\x00", bytes(256)), "body: must be a .npy file"),
        (npy(header("(1, 1, 8, 8)", "'|O'"), data=bytes(512)), "body: must be a .npy file of integers or floats"),
        (npy(header("(1, 1, 8, 8)", "[('a', '<f4')]"), data=bytes(256)), "body: must be a .npy file of integers or floats"),
        (npy(header("(1, 1, 8, 8)", "'<f4', 'x': 1"), data=bytes(256)), "body: must be a .npy file"),
        (npy(header("(1, 1, 8, 8)", "'<f16'"), data=b"\xff" * 1024), "body"),
        (npy(header("[1, 1, 8, 8]"), data=bytes(256)), "body: must be a .npy file"),
    ],
)
def test_an_npy_file_with_another_header_is_refused(server: RunningServer, body: bytes, error: str) -> None:
    answer = server.client.post("/predict", content=body, headers=NPY)
    assert answer.status_code in (413, 422), answer.text
    assert answer.json()["error"].startswith(error)


@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00"])
def test_every_version_of_npy_files_is_taken(server: RunningServer, version: bytes) -> None:
    answer = server.client.post("/predict", content=npy(header("(1, 1, 8, 8)"), version, bytes(256)), headers=NPY)
    assert answer.status_code == 200, answer.text


def infer_bodies() -> Iterator[tuple[str, str]]:
    """Requests of the Open Inference Protocol that were answered 500, and those like them, each with the field that is wrong."""
    tensor = json.dumps(TENSOR)
    one = tensor.replace("[1, 1, 8, 8]", "[%s, 1, 8, 8]")
    sized = json.dumps({"name": "%s", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 0}})
    binary = sized.replace("0}", f"{NINES}}}")
    both = ", ".join([binary.replace("%s", "inputs"), binary.replace("%s", "tolerance")])
    for timeout in (10**320, 10**308, -1, 2**63):
        yield f'{{"inputs": [{tensor}], "parameters": {{"timeout": {timeout}}}}}', "timeout"
    yield f'{{"inputs": [{tensor}], "parameters": {{"timeout": {NINES}}}}}', "timeout"
    yield f'{{"inputs": [{tensor}], "parameters": {{"deadline_ms": {NINES}}}}}', "deadline_ms"
    yield f'{{"inputs": [{tensor}], "parameters": {{"max_iterations": {NINES}}}}}', "max_iterations"
    yield f'{{"inputs": [{tensor}], "parameters": {{"tolerance": [{NINES}]}}}}', "tolerance"
    yield f'{{"inputs": [{one % NINES}]}}', "shape[0]"
    yield f'{{"inputs": [{one.replace("data", "x") % NINES}]}}', "shape[0]"
    yield f'{{"inputs": [{one % (2**62)}]}}', "data"
    yield f'{{"inputs": [{sized.replace("[1]", f"[{NINES}, 1, 8, 8]") % "inputs"}]}}', "shape[0]"
    yield f'{{"inputs": [{both}]}}', "binary_data_size"
    yield f'{{"inputs": [{tensor}], "id": "\\ud800"}}', "body"
    yield f'{{"inputs": [{tensor}], "parameters": {{"session": "\\ud800"}}}}', "body"
    yield f'{{"inputs": [{tensor.replace("inputs", chr(92) + "udc00")}]}}', "body"
    yield f'{{"inputs": [{tensor.replace("[0, ", f"[{NINES}, ", 1)}]}}', "data"
    yield f'{{"inputs": [{tensor.replace("FP32", "INT64").replace("[0, ", f"[{NINES}, ", 1)}]}}', "data"


def test_numbers_of_any_size_are_refused_and_named(server: RunningServer) -> None:
    for body, field in infer_bodies():
        length = {"inference-header-content-length": str(len(body.encode()))}
        rejected(server.client.post(INFER, content=body.encode(), headers=length), 400, field)


@pytest.mark.parametrize("value", [NINES, NINES + "9", f"[{NINES}]", "1e999", '"\\ud800"', "[" * 2000 + "]" * 2000])
def test_parameters_of_any_size_are_refused_and_named(server: RunningServer, value: str) -> None:
    file = npy(header("(1, 1, 8, 8)"), data=bytes(256))
    for name in ("tolerance", "max_iterations", "deadline_ms", "session", "solver", "stop"):
        body = f'{{"inputs": [{json.dumps(ROW)}], "{name}": {value}}}'
        answer = server.client.post("/predict", content=body.encode(), headers=JSON)
        assert answer.status_code in (400, 422), answer.text
        query = server.client.post("/predict", content=file, headers=NPY, params={name: value})
        assert query.status_code == 422 or (query.status_code == 200 and name == "session"), query.text


PATHS = [
    "/static/%00",
    "/static/" + "a" * 5000,
    "/static/..%2f..%2fmain.py",
    "/models/%00",
    "/models/%ff/predict",
    "/%2e%2e/%2e%2e/etc",
]
PATHS += [
    "/models/digits/versions/" + "9" * 5000,
    "/v2/models/" + "a" * 5000,
    "/v2/models/%f0%9f%92%a9/ready",
    "//evil.example/%2e%2e",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_is_an_internal_error(server: RunningServer, path: str) -> None:
    for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
        request = httpx.Request(method, server.url + "/", extensions={"target": path.encode()})
        assert 400 <= server.client.send(request).status_code < 500


def test_a_client_that_leaves_while_its_body_is_parsed_is_forgotten(server: RunningServer) -> None:
    body = LARGE["objects"][1]()
    head = f"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    for _ in range(4):
        with connected(server) as sock:
            sock.sendall(head.encode() + body)
    file = io.BytesIO()
    np.save(file, np.zeros((1, 1, 8, 8)))
    assert server.client.post("/predict", content=file.getvalue(), headers=NPY).status_code == 200
