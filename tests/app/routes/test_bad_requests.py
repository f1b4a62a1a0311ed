"""Invalid requests: each gets a 4xx with one error message, which names the field, the allowed values and the given one."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.running import RunningServer, rejected

ROW = np.zeros((1, 8, 8)).tolist()
JSON = {"content-type": "application/json"}
NPY = {"content-type": "application/x-npy"}


def changed(index: tuple[int, ...], value: object, rows: int = 2) -> list[object]:
    """Zeros of the digits model's shape with one entry replaced."""
    inputs = np.zeros((rows, 1, 8, 8)).tolist()
    place = inputs
    for i in index[:-1]:
        place = place[i]
    place[index[-1]] = value
    result: list[object] = inputs
    return result


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"inputs": np.zeros((2, 1, 8, 9)).tolist()}, ("inputs: ", "[n, 1, 8, 8]", "got [2, 1, 8, 9]")),
        ({"inputs": np.zeros((8, 8)).tolist()}, ("inputs: ", "[n, 1, 8, 8]", "got [8, 8]")),
        ({"inputs": np.zeros((1, 1, 8, 8, 1)).tolist()}, ("inputs: ", "got [1, 1, 8, 8, 1]")),
        ({"inputs": []}, ("inputs: ", "at least one row", "empty")),
        ({"inputs": [[]]}, ("inputs: ", "got [1, 0]")),
        ({"inputs": 7}, ("inputs: ", "[n, 1, 8, 8]", "got 7")),
        ({"inputs": None}, ("inputs: ", "got null")),
        ({"inputs": {"0": ROW}}, ("inputs: ", "lists")),
        ({"inputs": changed((1, 0, 3), [0] * 7)}, ("inputs[1][0][3]: ", "must be a list of 8 (got a list of 7)")),
        ({"inputs": changed((1, 0, 3), 5)}, ("inputs[1][0][3]: ", "must be a list of 8", "got 5")),
        ({"inputs": changed((1, 0, 3, 2), "seven")}, ("inputs[1][0][3][2]: ", "a number", 'got "seven"')),
        ({"inputs": changed((1, 0, 3, 2), True)}, ("inputs[1][0][3][2]: ", "a number", "got true")),
        ({"inputs": changed((1, 0, 3, 2), None)}, ("inputs[1][0][3][2]: ", "a number", "got null")),
        ({"inputs": changed((1, 0, 3, 2), [1])}, ("inputs[1][0][3][2]: ", "a number", "got [1]")),
        ({"inputs": changed((1, 0, 3, 2), 16.5)}, ("inputs[1][0][3][2]: ", "within [0, 16]", "got 16.5")),
        ({"inputs": changed((0, 0, 0, 0), -1)}, ("inputs[0][0][0][0]: ", "within [0, 16]", "got -1")),
        ({"inputs": changed((0, 0, 7, 7), 10**400)}, ("inputs[0][0][7][7]: ", "a number")),
        ({"inputs": [ROW], "images": []}, ("inputs, images: ", "both")),
        ({}, ("inputs, images: ", "neither")),
        ({"tolerance": 0.1}, ("inputs, images: ", "neither")),
        ([ROW], ("body: ", "an object")),
        (None, ("body: ", "an object", "got null")),
        (
            {"inputs": [ROW], "tolerence": 1},
            ("tolerence: ", "unknown field", "tolerance, max_iterations, deadline_ms", "did you mean tolerance?"),
        ),
        ({"images": []}, ("images: ", "at least one row", "empty")),
        ({"images": "abc"}, ("images: ", "a list of base64 strings", 'got "abc"')),
        ({"images": [5]}, ("images[0]: ", "base64", "got 5")),
        ({"images": ["*"]}, ("images[0]: ", "base64", 'got "*"')),
        ({"images": ["AAAA"]}, ("images[0]: ", "PNG or JPEG", "3 bytes")),
    ],
)
def test_inputs_that_are_not_what_the_model_takes(client: httpx.Client, content: object, parts: tuple[str, ...]) -> None:
    rejected(client.post("/predict", content=json.dumps(content), headers=JSON), 422, *parts)


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("tolerance", 0, ("tolerance: ", "above 0", "got 0")),
        ("tolerance", -1e-3, ("tolerance: ", "above 0", "got -0.001")),
        ("tolerance", 1e-300, ("tolerance: ", "1.2e-38")),
        ("tolerance", 1e300, ("tolerance: ", "3.4e38")),
        ("tolerance", True, ("tolerance: ", "number", "got true")),
        ("tolerance", None, ("tolerance: ", "number", "got null")),
        ("tolerance", "small", ("tolerance: ", "number", 'got "small"')),
        ("tolerance", [0.1], ("tolerance: ", "a list of 2, one per row", "got a list of 1")),
        ("tolerance", [0.1, 0], ("tolerance[1]: ", "above 0", "got 0")),
        ("max_iterations", 0, ("max_iterations: ", "an integer between 1 and 1000", "got 0")),
        ("max_iterations", 1001, ("max_iterations: ", "an integer between 1 and 1000", "got 1001")),
        ("max_iterations", 1.5, ("max_iterations: ", "an integer", "got 1.5")),
        ("max_iterations", 10**400, ("max_iterations: ", "an integer between 1 and 1000")),
        ("max_iterations", [1, 2, 3], ("max_iterations: ", "a list of 2", "got a list of 3")),
        ("max_iterations", [1, [2]], ("max_iterations[1]: ", "an integer", "got [2]")),
        ("deadline_ms", 0, ("deadline_ms: ", "above 0", "got 0")),
        ("deadline_ms", -5, ("deadline_ms: ", "above 0", "got -5")),
        ("deadline_ms", 10**400, ("deadline_ms: ", "finite")),
        ("deadline_ms", [], ("deadline_ms: ", "a list of 2", "got a list of 0")),
        ("solver", "newton", ("solver: ", "one of picard", 'got "newton"')),
        ("solver", None, ("solver: ", "one of picard", "got null")),
        ("solver", ["picard", "picard"], ("solver: ", "one of picard", 'got ["picard","picard"]')),
        ("stop", "never", ("stop: ", "one of tolerance, label", 'got "never"')),
        ("stop", 1, ("stop: ", "one of tolerance, label", "got 1")),
        ("stop", ["label"], ("stop: ", "one of tolerance, label", 'got ["label"]')),
    ],
)
def test_parameters_out_of_range(client: httpx.Client, name: str, value: object, parts: tuple[str, ...]) -> None:
    content = json.dumps({"inputs": [ROW, ROW], name: value})
    rejected(client.post("/predict", content=content, headers=JSON), 422, *parts)


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("tolerance=nan", ("tolerance: ", "got ")),
        ("tolerance=", ("tolerance: ", 'got ""')),
        ("tolerance=[1]", ("tolerance: ", "number")),
        ("stop=soon", ("stop: ", "one of tolerance, label", 'got "soon"')),
        ("stop=label&stop=label", ("stop: ", 'got ["label","label"]')),
        ("solver=7", ("solver: ", "one of picard", 'got "7"')),
        ("max_iterations=1_0", ("max_iterations: ", "an integer")),
        ("tolerance=1&tolerance=2", ("tolerance: ", "a list of 1")),
        ("tol=1", ("tol: ", "unknown field")),
        ("inputs=1", ("inputs: ", "unknown field")),
    ],
)
def test_parameters_in_the_query_string_are_checked_alike(client: httpx.Client, query: str, parts: tuple[str, ...]) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((1, 1, 8, 8)))
    rejected(client.post(f"/predict?{query}", content=file.getvalue(), headers=NPY), 422, *parts)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": [1,]}',
        b"inputs",
        b"\xff\xfe",
        b'{"inputs": "\xff"}',
        '{"inputs": []}'.encode("utf-16"),
        '\ufeff{"inputs": []}'.encode(),
        b'{"inputs": ' + b"[" * 9000,
        b'{"inputs": ' + b"[" * 9000 + b"]" * 9000 + b"}",
        b'{"tolerance": ' + b"1" * 9000 + b"}",
    ],
)
def test_what_is_not_json_is_400(client: httpx.Client, body: bytes) -> None:
    rejected(client.post("/predict", content=body, headers=JSON), 400, "body: must be JSON")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_in_json_is_400_and_the_error_names_its_byte(client: httpx.Client, text: str) -> None:
    body = json.dumps({"inputs": [ROW]}).replace("0.0", text, 1)
    byte = body.index(text) + text.startswith("-")
    rejected(client.post("/predict", content=body, headers=JSON), 400, "body: must be JSON", f"invalid character (byte {byte}")
    body = json.dumps({"inputs": [ROW]}).replace("{", '{"tolerance": ' + text + ", ")
    rejected(client.post("/predict", content=body, headers=JSON), 400, "body: must be JSON", "invalid character (byte 1")


def test_numbers_that_no_float_holds_are_named(client: httpx.Client) -> None:
    body = json.dumps({"inputs": [ROW]}).replace("0.0", "1e999", 1)
    rejected(client.post("/predict", content=body, headers=JSON), 422, "inputs[0][0][0][0]: ", "a number that fits in a float")
    body = json.dumps({"inputs": [ROW]}).replace("{", '{"tolerance": 1e999, ')
    rejected(client.post("/predict", content=body, headers=JSON), 422, "tolerance: ", "a number that fits in a float")
    body = '{"inputs": [[0, 1, 1e39, 3]]}'
    rejected(client.post("/models/slow/predict", content=body, headers=JSON), 422, "inputs[0][2]: ", "finite")


def test_a_model_of_vectors_takes_no_images(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    answer = client.post("/models/slow/predict", content=file.getvalue(), headers={"content-type": "image/png"})
    rejected(answer, 422, "body: ", "must be numbers of shape [4] (got an image)")
    images = [base64.b64encode(file.getvalue()).decode()]
    rejected(
        client.post("/models/slow/predict", json={"images": images}),
        422,
        "images[0]: ",
        "must be numbers of shape [4] (got an image)",
    )


def npy(shape: tuple[int, ...], dtype: str = "<f8", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"", ("header",)),
        (b"\x93NUMPY", ("header",)),
        (b"PK\x03\x04", ("header",)),
        (npy((1, 1, 8, 8), version=b"\x09\x00", data=bytes(512)), ("header",)),
        (npy((1, 1, 8, 8), data=bytes(511)), ("512 bytes", "got 511")),
        (npy((1, 1, 8, 8), data=bytes(513)), ("512 bytes", "got 513")),
        (npy((1000, 1, 8, 8)), ("bytes", "got 0")),
        (npy((1, 8, 8), data=bytes(512)), ("[n, 1, 8, 8]", "got [1, 8, 8]")),
        (npy((0, 1, 8, 8)), ("at least one row", "empty")),
        (npy((1, 1, 8, 8), "|b1", bytes(64)), ("integers or floats", "got dtype bool")),
        (npy((1, 1, 8, 8), "<c8", bytes(512)), ("integers or floats", "got dtype complex64")),
        (npy((1, 1, 8, 8), "|O", bytes(512)), ("integers or floats", "got dtype object")),
        (npy((1, 1, 8, 8), "<U2", bytes(512)), ("integers or floats", "got dtype <U2")),
        (npy((1, 1, 8, 8), data=np.full(64, np.nan).tobytes()), ("body[0][0][0][0]", "got NaN")),
        (npy((1, 1, 8, 8), "<i8", np.full(64, 17).tobytes()), ("body[0][0][0][0]", "within [0, 16]", "got 17")),
    ],
)
def test_npy_bodies_that_are_not_a_batch(client: httpx.Client, body: bytes, parts: tuple[str, ...]) -> None:
    rejected(client.post("/predict", content=body, headers=NPY), 422, "body", *parts)


def test_a_npy_header_that_promises_terabytes_is_rejected_before_they_are_allocated(client: httpx.Client) -> None:
    rejected(client.post("/predict", content=npy((2**40, 1, 8, 8)), headers=NPY), 413, "body: ", "at most 1024 rows")


def picture(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).save(file, kind)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A few bytes of PNG that state a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"", ("PNG or JPEG", "0 bytes")),
        (b"GIF89a", ("PNG or JPEG",)),
        (picture("gif"), ("PNG or JPEG",)),
        (picture("webp"), ("PNG or JPEG",)),
        (picture("png")[:-30], ("complete PNG or JPEG",)),
        (picture("jpeg", (64, 64))[:-300], ("complete PNG or JPEG",)),
        (bomb(10_000, 10_000), ("pixels", "10000 x 10000")),
        (bomb(100_000, 100_000), ("pixels",)),
    ],
)
def test_images_that_cannot_be_read_or_are_bombs(client: httpx.Client, body: bytes, parts: tuple[str, ...]) -> None:
    rejected(client.post("/predict", content=body, headers={"content-type": "image/png"}), 422, "body: ", *parts)
    rejected(client.post("/predict", json={"images": [base64.b64encode(body).decode()]}), 422, "images[0]: ", *parts)


def test_a_true_picture_that_is_tiny_as_a_file_and_huge_in_memory_is_rejected_before_it_is_decoded(server: RunningServer) -> None:
    def peak_memory() -> int:
        """The most that the process ever had, in kilobytes."""
        (line,) = [
            line for line in Path(f"/proc/{server.worker_pid()}/status").read_text().splitlines() if line.startswith("VmHWM")
        ]
        return int(line.split()[1])

    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    assert file.tell() < 100_000
    before = peak_memory()
    answer = server.client.post("/predict", content=file.getvalue(), headers={"content-type": "image/png"})
    rejected(answer, 422, "body: ", "pixels")
    assert peak_memory() - before < 20_000  # decoded, it would be 400,000 and more


def test_unknown_content_types_are_415_and_the_known_ones_are_listed(client: httpx.Client) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        rejected(client.post("/predict", content=b"{}", headers=headers), 415, "content-type: ", "application/json", "image/jpeg")
    rejected(
        client.post("/predict", content=b"{}", headers=JSON | {"content-encoding": "gzip"}), 415, "content-encoding: ", "gzip"
    )


def test_the_content_type_may_have_parameters_and_capitals(client: httpx.Client) -> None:
    headers = {"content-type": "Application/JSON; charset=latin-1"}
    assert client.post("/predict", content=json.dumps({"inputs": [ROW]}), headers=headers).status_code == 200


def test_unknown_models_and_versions_are_404_and_the_known_ones_are_listed(client: httpx.Client) -> None:
    rejected(client.post("/models/none/predict", json={"inputs": [ROW]}), 404, "no model 'none'", "available: digits, slow, wild")
    rejected(client.get("/models/none"), 404, "no model 'none'", "available: digits, slow, wild")
    rejected(client.post("/models/digits/versions/9/predict", json={}), 404, "model digits has no version 9", "available: 1, 2")
    rejected(
        client.post("/models/digits/versions/3/predict", json={}),
        404,
        "model digits has no version 3",
        "refused",
        "format_version",
    )
    rejected(client.post("/models/digits/versions/x/predict", json={}), 404, "digits has no alias 'x'", "versions: 1, 2", "none")
    rejected(client.post("/models/digits/versions/1.5/predict", json={}), 422, "version: ", "integer or an alias", 'got "1.5"')
    rejected(client.post("/models/..%2fdigits/predict", json={}), 404)


def test_unknown_paths_and_methods_have_the_same_form(client: httpx.Client) -> None:
    rejected(client.get("/nowhere"), 404, "not found: /nowhere", "/docs")
    rejected(client.get("/predict"), 405, "method: ", "must be POST", "got GET")
    rejected(client.delete("/models"), 405, "method: ", "got DELETE")


def test_too_many_rows_are_413(strict_server: RunningServer) -> None:
    answer = strict_server.predict({"inputs": [[0] * 4] * 5}, "/models/slow/predict")
    rejected(answer, 413, "inputs: ", "at most 4 rows", "got 5")
    file = io.BytesIO()
    np.save(file, np.zeros((5, 4)))
    rejected(
        strict_server.client.post("/models/slow/predict", content=file.getvalue(), headers=NPY), 413, "body: ", "at most 4 rows"
    )
    images = ["AAAA"] * 5
    rejected(strict_server.predict({"images": images}, "/models/digits/predict"), 413, "images: ", "at most 4 rows")


def test_a_body_over_the_limit_is_413_by_its_length_and_while_it_streams(strict_server: RunningServer) -> None:
    path = "/models/slow/predict"
    body = b" " * 10_001
    rejected(strict_server.client.post(path, content=body, headers=JSON), 413, "body: ", "at most 10000 bytes", "got 10001")
    chunks = (body[i : i + 1000] for i in range(0, len(body), 1000))
    rejected(strict_server.client.post(path, content=chunks, headers=JSON), 413, "body: ", "at most 10000 bytes")
    just_right = json.dumps({"inputs": [[0] * 4]}).encode().ljust(10_000)
    assert strict_server.client.post(path, content=just_right, headers=JSON).status_code == 200


PNG = b"\x89PNG\r\n\x1a\n"
FORM = {"content-type": "multipart/form-data; boundary=b"}


def part(name: str, content: bytes = b"", headers: bytes = b"") -> bytes:
    return b'--b\r\ncontent-disposition: form-data; name="%b"\r\n%b\r\n%b\r\n' % (name.encode(), headers, content)


@pytest.mark.parametrize(
    ("body", "status", "parts"),
    [
        (part("file", PNG) + b"--b--", 422, ("file[0]: ", "PNG or JPEG", "8 bytes")),
        (part("tolerance", b"0.1") + b"--b--", 422, ("file: ", "at least one row")),
        (b"--b--", 422, ("file: ", "at least one row")),
        (part("image", PNG) + b"--b--", 422, ("image: ", "unknown field (known: file, ", "tolerance")),
        (part("", PNG) + b"--b--", 400, ("body: ", "name every part")),
        (part("file", PNG), 400, ("body: ", "ends before its last part")),
        (part("file", PNG) + b"--bb--", 400, ("body: ", "multipart/form-data")),
        (part("file", PNG).replace(b"--b", b"--c") + b"--b--", 400, ("body: ", "multipart/form-data")),
        (b"", 400, ("body: ", "multipart/form-data")),
        (b"\r\n" * 50_000, 400, ("body: ", "multipart/form-data")),
        (b"PNG", 400, ("body: ", "multipart/form-data")),
        (part("file", headers=b"x: y\r\n" * 50) + b"--b--", 400, ("body: ", "Maximum header count")),
        (part("file", headers=b"x: " + b"y" * 10_000 + b"\r\n") + b"--b--", 400, ("body: ", "Maximum header size")),
        (part("file", headers=b"x y\r\n") + b"--b--", 400, ("body: ", "multipart/form-data")),
        (part("session", b"s" * 300_000) + b"--b--", 422, ("session: ", "at most 262144 bytes")),
        (part("tolerance", b"small") + part("file", PNG) + b"--b--", 422, ("file[0]: ", "PNG")),
        (part("file") * 1025 + b"--b--", 413, ("file: ", "at most 1024 rows (got 1025)")),
        (part("file") * 9000 + b"--b--", 413, ("body: ", "at most 8192 parts (got 9000)")),
    ],
    ids=str,
)
def test_forms_that_are_not_whole_or_too_large(client: httpx.Client, body: bytes, status: int, parts: tuple[str, ...]) -> None:
    rejected(client.post("/predict", content=body, headers=FORM), status, *parts)


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "b" * 71, "; charset=b"])
def test_a_form_needs_a_boundary(client: httpx.Client, boundary: str) -> None:
    kind = {"content-type": f"multipart/form-data{boundary}"}
    rejected(client.post("/predict", content=part("file", PNG) + b"--b--", headers=kind), 400, "content-type: ", "boundary")


@pytest.mark.parametrize("image", ["data:image/gif;base64,AAAA", "data:image/png,AAAA", "data:image/png;base64,*", "data:"])
def test_data_uris_of_something_else(client: httpx.Client, image: str) -> None:
    rejected(client.post("/predict", json={"images": [image]}), 422, "images[0]: ", "base64", "data: URI")
