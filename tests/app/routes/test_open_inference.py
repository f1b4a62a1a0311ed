"""The Open Inference Protocol, with Triton's own clients and over plain HTTP."""

import asyncio
import base64
import io
import json
import math
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from jfb import images
from tests.app.running import RunningServer, rejected
from tests.app.store import DIGITS

HEADER = "inference-header-content-length"
INFER = "/v2/models/digits/infer"
ROW = {"name": "inputs", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0] * 64}


def schema_of(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(properties)}


TENSOR_METADATA = schema_of(
    name={"type": "string"}, datatype={"type": "string"}, shape={"type": "array", "items": {"type": "integer"}}
)
PUBLISHED = {
    "metadata_server_response": schema_of(
        name={"type": "string"}, version={"type": "string"}, extensions={"type": "array", "items": {"type": "string"}}
    ),
    "metadata_model_response": schema_of(name={"type": "string"}, platform={"type": "string"})
    | {
        "properties": {
            "name": {"type": "string"},
            "platform": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "inputs": {"type": "array", "items": TENSOR_METADATA},
            "outputs": {"type": "array", "items": TENSOR_METADATA},
        }
    },
    "inference_response": schema_of(
        model_name={"type": "string"},
        model_version={"type": "string"},
        id={"type": "string"},
        outputs={
            "type": "array",
            "items": TENSOR_METADATA
            | schema_of(
                name={"type": "string"},
                datatype={"type": "string"},
                shape={"type": "array", "items": {"type": "integer"}},
                data={"type": "array", "items": {"type": ["number", "string", "boolean"]}},
            ),
        },
    ),
    "inference_error_response": schema_of(error={"type": "string"}),
}
"""The protocol's OpenAPI description (open_inference_rest.yaml), as far as it says what a server answers."""


def check_published(name: str, answer: httpx.Response) -> Any:
    Draft202012Validator(PUBLISHED[name]).validate(answer.json())
    return answer.json()


@pytest.fixture(scope="module")
def v2_client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    """Triton's client."""
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def tensor(name: str, array: NDArray[Any], datatype: str, *, binary: bool = True) -> triton.InferInput:
    result = triton.InferInput(name, list(array.shape), datatype)
    result.set_data_from_numpy(array, binary_data=binary)
    return result


def native(client: httpx.Client, inputs: NDArray[np.float64], **parameters: object) -> list[dict[str, Any]]:
    """What the native API answers."""
    rows: list[dict[str, Any]] = client.post("/predict", json={"inputs": inputs.tolist(), **parameters}).json()["predictions"]
    return rows


def assert_same(result: triton.InferResult, rows: list[dict[str, Any]]) -> None:
    assert result.as_numpy("iterations").tolist() == [row["iterations"] for row in rows]
    assert result.as_numpy("converged").tolist() == [row["status"] == "converged" for row in rows]
    assert result.as_numpy("residual") == pytest.approx([row["residual"] for row in rows], rel=1e-4)
    logits = result.as_numpy("logits")
    assert logits.argmax(1).tolist() == [row["index"] for row in rows]
    powers = np.exp(logits.astype(np.float64))
    assert powers / powers.sum(1, keepdims=True) == pytest.approx(np.array([row["probabilities"] for row in rows]), abs=1e-5)


def test_tritonclient_finds_the_server_and_its_models_live_ready_and_described(
    v2_client: triton.InferenceServerClient,
) -> None:
    assert v2_client.is_server_live()
    assert v2_client.is_server_ready()
    assert v2_client.is_model_ready("digits")
    assert v2_client.is_model_ready("digits", "1")
    assert not v2_client.is_model_ready("digits", "9")
    assert not v2_client.is_model_ready("none")
    assert {"binary_tensor_data", "classification", "statistics"} <= set(v2_client.get_server_metadata()["extensions"])
    assert v2_client.get_model_metadata("digits") == {
        "name": "digits",
        "versions": ["1", "2"],
        "platform": "jfb_safetensors",
        "inputs": [
            {"name": "inputs", "datatype": "FP32", "shape": [-1, 1, 8, 8]},
            {"name": "tolerance", "datatype": "FP32", "shape": [-1], "parameters": {"optional": True}},
            {"name": "max_iterations", "datatype": "INT64", "shape": [-1], "parameters": {"optional": True}},
        ],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 10], "parameters": {"labels": [*"0123456789"]}},
            {"name": "iterations", "datatype": "INT64", "shape": [-1]},
            {"name": "residual", "datatype": "FP32", "shape": [-1]},
            {"name": "converged", "datatype": "BOOL", "shape": [-1]},
        ],
    }


def test_every_output_of_the_metadata_may_be_requested_of_every_model(client: httpx.Client) -> None:
    for model, shape in (("digits", [1, 1, 8, 8]), ("slow", [1, 4]), ("wild", [1, 2])):
        names = [{"name": output["name"]} for output in client.get(f"/v2/models/{model}").json()["outputs"]]
        row = ROW | {"shape": shape, "data": [0] * math.prod(shape)}
        answer = client.post(
            f"/v2/models/{model}/infer", json={"inputs": [row], "outputs": names, "parameters": {"timeout": 100_000}}
        )
        assert [{"name": output["name"]} for output in answer.json()["outputs"]] == names


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_highest_classes_with_their_labels(
    v2_client: triton.InferenceServerClient, digits: NDArray[np.float64], binary: bool
) -> None:
    inputs = [tensor("inputs", digits.astype(np.float32), "FP32")]
    logits = v2_client.infer("digits", inputs).as_numpy("logits")
    outputs = [triton.InferRequestedOutput("logits", binary, class_count=3)]
    result = v2_client.infer("digits", inputs, outputs=outputs)
    assert result.get_output("logits")["datatype"] == "BYTES"
    entries = result.as_numpy("logits")
    assert entries.shape == (8, 3)
    for row, texts in zip(logits, entries, strict=True):
        for index, text in zip(np.argsort(-row)[:3], texts, strict=True):
            value, number, label = (text.decode() if binary else text).split(":")
            assert float(value) == pytest.approx(float(row[index]), abs=1e-5)
            assert (int(number), label) == (index, str(index))
    all_classes = [triton.InferRequestedOutput("logits", class_count=1000)]
    assert v2_client.infer("digits", inputs, outputs=all_classes).as_numpy("logits").shape == (8, 10)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_tritonclient_sends_png_and_jpeg_files_as_bytes(
    v2_client: triton.InferenceServerClient, client: httpx.Client, digits: NDArray[np.float64], shape: tuple[int, ...]
) -> None:
    files = [images.encode(row, DIGITS.input) for row in digits[:3]]
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(files[0])).save(jpeg, "JPEG")
    files.append(jpeg.getvalue())
    texts = [base64.b64encode(file).decode() for file in files]
    rows = client.post("/predict", json={"images": texts}).json()["predictions"]
    assert_same(v2_client.infer("digits", [tensor("inputs", np.array(files, object).reshape(shape), "BYTES")]), rows)
    in_json = tensor("inputs", np.array(texts, object).reshape(shape), "BYTES", binary=False)
    assert_same(v2_client.infer("digits", [in_json]), rows)
    nested = {"name": "inputs", "datatype": "BYTES", "shape": [4, 1], "data": [[text] for text in texts]}
    flat = nested | {"data": texts}
    assert client.post(INFER, json={"inputs": [nested]}).json() == client.post(INFER, json={"inputs": [flat]}).json()


def test_a_damaged_bytes_tensor_is_400_and_names_the_file(v2_client: triton.InferenceServerClient, client: httpx.Client) -> None:
    def refused(array: NDArray[Any], message: str) -> None:
        with pytest.raises(InferenceServerException, match=message) as error:
            v2_client.infer("digits", [tensor("inputs", array, "BYTES")])
        assert error.value.status() == "400"

    refused(np.array([b"no image"], object), r"inputs\[0\]\[0\]: must be a complete PNG or JPEG")
    refused(np.array([[b"a", b"b"]], object), r"inputs\[0\]\.shape: must be \[n\] or \[n, 1\] \(got \[1, 2\]\)")
    one = {"name": "inputs", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}
    for tail, shape, message in (
        (b"\x02\0\0\0a", [1], "got one that is cut"),
        (b"\x01\0\0\0a", [2], "must be 2 entries of BYTES (got 1)"),
        (b"\0\0\0\0\0", [1], "got one that is cut"),
    ):
        content = json.dumps({"inputs": [one | {"shape": shape}]}).encode()
        rejected(client.post(INFER, content=content + tail, headers={HEADER: str(len(content))}), 400, "inputs[0]: ", message)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize(
    ("datatype", "dtype"), [("FP32", np.float32), ("FP16", np.float16), ("UINT8", np.uint8), ("INT64", np.int64)]
)
def test_tritonclient_gets_what_the_native_api_answers(
    v2_client: triton.InferenceServerClient,
    client: httpx.Client,
    digits: NDArray[np.float64],
    binary_in: bool,
    binary_out: bool,
    datatype: str,
    dtype: Any,
) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_out) for name in ("logits", "iterations", "residual", "converged")]
    inputs = [tensor("inputs", digits.astype(dtype), datatype, binary=binary_in)]
    assert_same(v2_client.infer("digits", inputs, outputs=outputs), native(client, digits))


def test_tolerance_and_cap_are_parameters_for_all_rows(
    v2_client: triton.InferenceServerClient, client: httpx.Client, digits: NDArray[np.float64]
) -> None:
    inputs = [tensor("inputs", digits.astype(np.float32), "FP32")]
    for parameters in ({"tolerance": 1e-5}, {"max_iterations": 2}, {"tolerance": 1e-1, "max_iterations": 30}):
        assert_same(v2_client.infer("digits", inputs, parameters=parameters), native(client, digits, **parameters))


def test_tolerance_and_cap_are_inputs_with_one_entry_per_row_which_go_before_parameters(
    v2_client: triton.InferenceServerClient, client: httpx.Client, digits: NDArray[np.float64]
) -> None:
    tolerance = np.array([1e-1, 1e-4] * 4, np.float32)
    cap = np.array([1, 60, 60, 2] * 2)
    inputs = [
        tensor("tolerance", tolerance, "FP32", binary=False),
        tensor("inputs", digits.astype(np.float32), "FP32"),
        tensor("max_iterations", cap, "INT64"),
    ]
    result = v2_client.infer("digits", inputs, parameters={"max_iterations": 7})
    assert_same(result, native(client, digits, tolerance=tolerance.tolist(), max_iterations=cap.tolist()))


def test_only_the_requested_outputs_are_sent_in_the_requested_order_and_format(
    v2_client: triton.InferenceServerClient, digits: NDArray[np.float64]
) -> None:
    outputs = [triton.InferRequestedOutput("converged", False), triton.InferRequestedOutput("logits", True)]
    result = v2_client.infer(
        "digits", [tensor("inputs", digits.astype(np.float32), "FP32")], outputs=outputs, request_id="forty-two"
    )
    response = result.get_response()
    assert response["id"] == "forty-two"
    assert (response["model_name"], response["model_version"]) == ("digits", "2")
    assert [output["name"] for output in response["outputs"]] == ["converged", "logits"]
    assert response["outputs"][0]["data"] == [True] * 8
    assert response["outputs"][1]["parameters"] == {"binary_data_size": 8 * 10 * 4}


def test_a_version_can_be_named(v2_client: triton.InferenceServerClient, digits: NDArray[np.float64]) -> None:
    inputs = [tensor("inputs", digits.astype(np.float32), "FP32")]
    first, second = (v2_client.infer("digits", inputs, model_version=version) for version in ("1", "2"))
    assert (first.get_response()["model_version"], second.get_response()["model_version"]) == ("1", "2")
    assert not np.allclose(first.as_numpy("logits"), second.as_numpy("logits"))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_may_compress_what_it_sends(
    v2_client: triton.InferenceServerClient, client: httpx.Client, digits: NDArray[np.float64], algorithm: str
) -> None:
    inputs = [tensor("inputs", digits.astype(np.float32), "FP32")]
    result = v2_client.infer("digits", inputs, request_compression_algorithm=algorithm, response_compression_algorithm=algorithm)
    assert_same(result, native(client, digits))


def test_many_tritonclient_requests_at_once(
    v2_client: triton.InferenceServerClient, client: httpx.Client, digits: NDArray[np.float64]
) -> None:
    one = [[tensor("inputs", digits[k : k + 1].astype(np.float32), "FP32")] for k in range(8)]
    pending = [v2_client.async_infer("digits", inputs) for inputs in one]
    rows = native(client, digits)
    for k, promise in enumerate(pending):
        assert_same(promise.get_result(), rows[k : k + 1])


def test_the_asyncio_tritonclient_works_too(server: RunningServer, client: httpx.Client, digits: NDArray[np.float64]) -> None:
    async def infer() -> triton.InferResult:
        async with triton_aio.InferenceServerClient(server.url.removeprefix("http://")) as v2_client:
            assert await v2_client.is_server_ready()
            assert await v2_client.is_model_ready("digits")
            assert (await v2_client.get_model_metadata("digits", "1"))["name"] == "digits"
            assert (await v2_client.get_model_repository_index())[0]["name"] == "digits"
            with pytest.raises(InferenceServerException, match="none"):
                await v2_client.infer("none", [tensor("inputs", digits.astype(np.float32), "FP32")])
            plain = await v2_client.infer("digits", [tensor("inputs", digits.astype(np.float32), "FP32", binary=False)])
            assert plain.as_numpy("logits").shape == (8, 10)
            return await v2_client.infer("digits", [tensor("inputs", digits.astype(np.float32), "FP32")])

    assert_same(asyncio.run(infer()), native(client, digits))


def test_tritonclient_reports_what_was_wrong(v2_client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"within \[0, 16\]") as error:
        v2_client.infer("digits", [tensor("inputs", np.full((1, 1, 8, 8), 17, np.uint8), "UINT8")])
    assert error.value.status() == "400"


def test_rows_that_diverge_have_no_numbers(client: httpx.Client, server: RunningServer) -> None:
    content = {"inputs": [{"name": "inputs", "datatype": "FP64", "shape": [2, 2], "data": [[0, 0], [1, 1]]}]}
    answer = client.post("/v2/models/wild/infer", json=content).json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["converged"] == [True, False]
    assert outputs["logits"][2:] == [None, None]
    assert None not in outputs["logits"][:2]
    assert outputs["residual"][1] is None


def test_answers_are_as_the_published_description_says(client: httpx.Client) -> None:
    for path in ("/v2", "/v2/"):
        assert check_published("metadata_server_response", client.get(path))["name"] == "jfb"
    for path in ("/v2/models/digits", "/v2/models/slow/versions/1"):
        check_published("metadata_model_response", client.get(path))
    answer = client.post(INFER, json={"id": "", "inputs": [ROW]})
    assert check_published("inference_response", answer)["id"] == ""
    assert HEADER not in answer.headers
    check_published("inference_error_response", client.post(INFER, json={"inputs": []}))
    check_published("inference_error_response", client.get("/v2/models/none"))
    assert client.get("/v2/models/digits/versions/2/ready").json() == {"name": "digits", "ready": True}


def test_data_may_be_flat_or_nested(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    flat = ROW | {"shape": [8, 1, 8, 8], "data": digits.ravel().tolist()}
    nested = flat | {"data": digits.tolist()}
    one, other = (client.post(INFER, json={"inputs": [given]}).json() for given in (flat, nested))
    assert one == other
    assert len(one["outputs"]) == 4


def changed(**fields: object) -> dict[str, object]:
    return {"inputs": [{name: value for name, value in (ROW | fields).items() if value is not None}]}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({}, ("inputs",)),
        ([], ("body: ", "object")),
        ({"inputs": []}, ("inputs: ", "a tensor with the name inputs")),
        ({"inputs": [5]}, ("inputs[0]: ", "object")),
        (changed(name="input"), ("inputs[0].name: ", "inputs, tolerance, max_iterations", 'got "input"')),
        ({"inputs": [ROW, ROW]}, ("inputs: ", "once", "2 times")),
        (changed(datatype="FP8"), ("inputs[0].datatype: ", 'got "FP8"')),
        (changed(datatype="BYTES"), ("inputs[0].shape: ", "[n] or [n, 1]")),
        (changed(datatype="BYTES", shape=[1], data=[7]), ("inputs[0].data[0]: ", "must be a string")),
        (changed(datatype="BYTES", shape=[1], data=["~"]), ("inputs[0].data[0]: ", "a base64 string")),
        (changed(datatype="BYTES", shape=[1], data=[["", ""]]), ("inputs[0].data: ", "1 base64 strings (got 2)")),
        (changed(datatype="BYTES", shape=[2], data=[""]), ("inputs[0].data: ", "a list of 2 (got a list of 1)")),
        (changed(datatype="BYTES", shape=[0], data=[]), ("inputs: ", "at least one row")),
        (changed(datatype="BOOL", data=[True] * 64), ("inputs[0].datatype: ", "BOOL")),
        (changed(shape=[1, 8, 8]), ("inputs[0].shape: ", "[n, 1, 8, 8]", "got [1, 8, 8]")),
        (changed(shape=[]), ("inputs[0].shape: ", "got []")),
        (changed(shape=[1] * 1000), ("inputs[0].shape: ", "1000 sides")),
        (changed(shape=[-1, 1, 8, 8]), ("inputs[0].shape[0]: ",)),
        (changed(shape=[2**70, 1, 8, 8]), ("inputs[0]",)),
        (changed(shape=[2, 1, 8, 8]), ("inputs[0].data: ", "[2, 1, 8, 8]", "[64]")),
        (changed(shape=[0, 1, 8, 8], data=[]), ("inputs: ", "at least one row")),
        (changed(data=None), ("inputs[0]: ", "data or parameters.binary_data_size", "neither")),
        (changed(data=[[[[0] * 8] * 7]]), ("inputs[0].data: ", "[1, 1, 8, 8]", "[1, 1, 7, 8]")),
        (changed(data=[[[[0] * 8] * 7 + [[0] * 7]]]), ("inputs[0].data[0][0][7]: ", "must be a list of 8 (got a list of 7)")),
        (changed(data=[0] * 63 + ["7"]), ("inputs[0].data[63]: ", "must be a number", 'got "7"')),
        (changed(data=[0] * 63 + [True]), ("inputs[0].data[63]: ", "must be a number", "got true")),
        (changed(data=[0] * 63 + [None]), ("inputs[0].data[63]: ", "must be a number", "got null")),
        (changed(data=[0] * 63 + [17]), ("inputs[0][0][7][7]: ", "within [0, 16]", "got 17")),
        (changed(data=[0] * 63 + [1e39]), ("inputs[0][0][7][7]: ", "got Infinity")),
        (changed(data=[0] * 63 + [1e6], datatype="FP16"), ("inputs[0][0][7][7]: ", "got Infinity")),
        (changed(data=[0] * 63 + [256], datatype="UINT8"), ("inputs[0].data[63]: ", "255")),
        (changed(data=[0] * 63 + [-1], datatype="UINT8"), ("inputs[0].data[63]: ", "0")),
        (changed(data=[0] * 63 + [0.5], datatype="INT32"), ("inputs[0].data[63]: ", "must be an integer", "got 0.5")),
        (changed(data=7), ("inputs[0].data: ", "must be a list")),
        (changed(data={"0": 1}), ("inputs[0].data: ", "must be a list")),
        (changed(parameters={"binary_data_size": 256}), ("body: ", "256 bytes", "got 0")),
        (changed(parameters={"binary_data_size": -1}), ("inputs[0].parameters.binary_data_size: ", "0")),
        (changed(parameters={"shared_memory_region": "x"}), ("inputs[0].parameters: ", "shared_memory_region")),
        ({"inputs": [ROW], "outputs": [{"name": "label"}]}, ("outputs[0].name: ", "logits, iterations", 'got "label"')),
        ({"inputs": [ROW], "outputs": [{"name": "logits"}] * 2}, ("outputs: ", "logits once")),
        (
            {"inputs": [ROW], "outputs": [{"name": "iterations", "parameters": {"classification": 3}}]},
            ("outputs[0].parameters.classification: ", "except of logits (got it for iterations)"),
        ),
        ({"inputs": [ROW], "outputs": [{"name": "logits", "parameters": {"classification": 0}}]}, ("classification", ">= 1")),
        ({"inputs": [ROW], "id": 42}, ("id: ", "must be a string", "got 42")),
        ({"inputs": [ROW], "parameters": {"tolerence": 1}}, ("parameters: ", "tolerence")),
        ({"inputs": [ROW], "parameters": {"tolerance": 0}}, ("tolerance: ", "above 0")),
        ({"inputs": [ROW], "parameters": {"max_iterations": 1001}}, ("max_iterations: ", "between 1 and 1000")),
        ({"inputs": [ROW], "parameters": {"solver": "newton"}}, ("solver: ", "one of picard", 'got "newton"')),
        ({"inputs": [ROW], "parameters": {"solver": 1}}, ("solver: ", "one of picard", "got 1")),
        ({"inputs": [ROW], "parameters": {"stop": "soon"}}, ("stop: ", "one of tolerance, label", 'got "soon"')),
        ({"inputs": [ROW], "outputs": [{"name": "bound"}]}, ("outputs[0].name: ", "logits, iterations", 'got "bound"')),
        (
            {"inputs": [ROW, {"name": "tolerance", "datatype": "FP32", "shape": [2], "data": [1, 1]}]},
            ("tolerance: ", "list of 1"),
        ),
        (
            {"inputs": [ROW, {"name": "tolerance", "datatype": "FP32", "shape": [1, 1], "data": [1]}]},
            ("inputs[1].shape: ", "[n]"),
        ),
        ({"inputs": [ROW, {"name": "max_iterations", "datatype": "INT64", "shape": [1], "data": [0]}]}, ("max_iterations[0]: ",)),
    ],
)
def test_bad_requests_are_400_and_name_the_field(client: httpx.Client, content: object, parts: tuple[str, ...]) -> None:
    rejected(client.post(INFER, json=content), 400, *parts)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"other": ' + b"[" * 100_000, b'{"inputs": [{"data": [NaN]}]}'])
def test_what_is_no_json_is_400(client: httpx.Client, content: bytes) -> None:
    rejected(client.post(INFER, content=content), 400, "body: ", "JSON")


def test_unknown_models_and_versions_are_404_and_versions_that_are_no_numbers_400(client: httpx.Client) -> None:
    for method, path in (("POST", "/infer"), ("GET", ""), ("GET", "/ready")):
        rejected(client.request(method, f"/v2/models/none{path}"), 404, "no model 'none'", "digits")
        rejected(client.request(method, f"/v2/models/digits/versions/9{path}"), 404, "model digits has no version 9", "1, 2")
        rejected(client.request(method, f"/v2/models/digits/versions/one{path}"), 404, "digits has no alias 'one'", "1, 2")
        rejected(client.request(method, f"/v2/models/digits/versions/v1{path}"), 400, "version: ", "integer")
        rejected(client.request(method, f"/v2/models/digits/versions/{'9' * 5000}{path}"), 400, "version: ", "integer")


def test_deadlines_are_kept_and_tritons_timeout_is_one_in_microseconds(client: httpx.Client) -> None:
    slow = {"inputs": [{"name": "inputs", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]}]}
    for deadline in ({"deadline_ms": 100}, {"timeout": 100_000}):
        body = slow | {"parameters": {"tolerance": 1e-30, "max_iterations": 1000, **deadline}}
        outputs = client.post("/v2/models/slow/infer", json=body).json()["outputs"]
        assert outputs[3]["data"] == [False]
    rejected(client.post("/v2/models/slow/infer", json=slow | {"parameters": {"timeout": 0}}), 400, "deadline_ms: ", "above 0")
    rejected(client.post("/v2/models/slow/infer", json=slow | {"parameters": {"deadline_ms": 1e-6}}), 504, "deadline_ms: ")


def test_limits_hold_here_too(strict_server: RunningServer) -> None:
    rows = {"name": "inputs", "datatype": "FP32", "shape": [5, 4], "data": [0] * 20}
    rejected(strict_server.predict({"inputs": [rows]}, "/v2/models/slow/infer"), 413, "at most 4 rows")
    body = json.dumps({"inputs": [rows]}).encode()
    rejected(strict_server.client.post("/v2/models/slow/infer", content=body.ljust(10_001)), 413, "at most 10000 bytes")


def test_a_compressed_body_is_judged_by_its_true_size_and_must_be_whole(strict_server: RunningServer) -> None:
    def post(content: bytes, encoding: str = "deflate") -> httpx.Response:
        headers = {"content-encoding": encoding}
        return strict_server.client.post("/v2/models/slow/infer", content=content, headers=headers)

    rows = json.dumps({"inputs": [{"name": "inputs", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}]}).encode()
    assert post(zlib.compress(rows)).status_code == 200
    rejected(post(zlib.compress(bytes(5_000_000))), 413, "at most 10000 bytes when decompressed")
    rejected(post(zlib.compress(rows)[:-5]), 400, "whole")
    rejected(post(zlib.compress(rows) + b"x"), 400, "more")
    rejected(post(b"no stream"), 400, "decompressed")
    rejected(post(rows, "br"), 415, "content-encoding: ", "gzip or deflate", "br")


def test_the_index_lists_every_version_with_what_is_wrong_with_it(
    v2_client: triton.InferenceServerClient, client: httpx.Client
) -> None:
    index = v2_client.get_model_repository_index()
    assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
        ("digits", "1", "READY"),
        ("digits", "2", "READY"),
        ("digits", "3", "UNAVAILABLE"),
        ("slow", "1", "READY"),
        ("wild", "1", "READY"),
    ]
    assert "format_version" in index[2]["reason"]
    assert client.post("/v2/repository/index").json() == index
    ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert [entry["state"] for entry in ready] == ["READY"] * 4
    rejected(client.post("/v2/repository/index", json={"ready": 1}), 400, "ready: ")


def test_tritonclient_unloads_and_loads_a_model(v2_client: triton.InferenceServerClient, client: httpx.Client) -> None:
    v2_client.unload_model("wild")
    assert not v2_client.is_model_ready("wild")
    assert v2_client.get_model_repository_index()[-1] == {
        "name": "wild",
        "state": "UNAVAILABLE",
        "reason": "unloaded on request",
    }
    v2_client.load_model("wild")
    assert v2_client.is_model_ready("wild")
    with pytest.raises(InferenceServerException, match="none"):
        v2_client.load_model("none")
    with pytest.raises(InferenceServerException, match="config"):
        v2_client.load_model("wild", config="{}")
    rejected(client.post("/v2/repository/models/wild/load", content=b"{"), 400, "body: ", "JSON")
