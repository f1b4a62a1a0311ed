"""The Open Inference Protocol over gRPC, with Triton's own clients, in front of two HTTP workers."""

import asyncio
import json
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from app.grpc import messages
from jfb import images
from tests.app.running import RunningServer, running_server, wait_until
from tests.app.store import DIGITS
from tests.ports import free_port

# Triton's HTTP client adds to the headers that it is given.
USER, ADMIN = {"authorization": "Bearer user"}, {"authorization": "Bearer admin"}
OUTPUTS = ("logits", "iterations", "residual", "converged")


@pytest.fixture(scope="module")
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def fleet(store: Path, address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of two HTTP workers that requires keys, with gRPC."""
    settings: dict[str, Any] = {
        "default_model": "digits",
        "slots": 32,
        "http_workers": 2,
        "api_keys": "user",
        "admin_keys": "admin",
    }
    settings |= {"max_body_bytes": 100_000, "max_iterations_limit": 1_000_000, "grpc_port": address.rpartition(":")[2]}
    log = tmp_path_factory.mktemp("grpc") / "log"
    with running_server(store, log, **settings) as running:
        running.wait_until_ready()
        wait_until(lambda: log.read_text().count("gRPC server listening") == 2, 20, "both workers serve gRPC")
        running.client.headers.update(USER)
        yield running


@pytest.fixture(scope="module")
def client(fleet: RunningServer, address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def stub(fleet: RunningServer, address: str) -> Iterator[Any]:
    """The stub that protoc makes."""
    with grpc.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def rest(fleet: RunningServer) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(fleet.url.removeprefix("http://")) as client:
        yield client


def tensor(array: NDArray[Any], datatype: str, name: str = "inputs", *, of: Any = triton) -> Any:
    result = of.InferInput(name, list(array.shape), datatype)
    result.set_data_from_numpy(array)
    return result


def assert_equal(one: Any, other: Any, outputs: tuple[str, ...] = OUTPUTS) -> None:
    for name in outputs:
        np.testing.assert_array_equal(one.as_numpy(name), other.as_numpy(name))


def refused(code: str, message: str, call: Any, *arguments: Any, **options: Any) -> None:
    with pytest.raises(InferenceServerException, match=message) as error:
        call(*arguments, **options)
    assert error.value.status() == f"StatusCode.{code}"


def test_the_committed_descriptors_are_those_of_the_protocol_file(tmp_path: Path) -> None:
    folder, made = Path(messages.__file__).parent, tmp_path / "made.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(folder), f"--descriptor_set_out={made}"]
    subprocess.run([*command, str(folder / "open_inference.proto")], check=True, timeout=60)
    assert made.read_bytes() == (folder / "open_inference.binpb").read_bytes()


def test_every_field_and_method_is_numbered_and_named_as_tritons() -> None:
    theirs = service_pb2.DESCRIPTOR
    their_methods = theirs.services_by_name["GRPCInferenceService"].methods_by_name
    for rpc in set(their_methods) - set(messages.NOT_OFFERED):
        method, their_method = messages._POOL.FindServiceByName(messages.SERVICE).FindMethodByName(rpc), their_methods[rpc]
        for ours, of_them in ((method.input_type, their_method.input_type), (method.output_type, their_method.output_type)):
            check_fields(ours, of_them)


def check_fields(ours: Any, theirs: Any) -> None:
    for field in ours.fields:
        if field.full_name == "inference.ModelMetadataResponse.properties":  # KServe's, which Triton's lacks
            continue
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), field.full_name
        if field.message_type is not None:
            check_fields(field.message_type, other.message_type)
        if field.enum_type is not None:
            for value in field.enum_type.values:
                assert other.enum_type.values_by_name[value.name].number == value.number


@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", np.float32), ("FP16", np.float16), ("UINT8", np.uint8)])
def test_tritonclient_gets_what_rest_answers(
    client: triton.InferenceServerClient,
    rest: triton_http.InferenceServerClient,
    digits: NDArray[np.float64],
    datatype: str,
    dtype: Any,
) -> None:
    array, parameters = digits.astype(dtype), {"tolerance": 1e-5, "max_iterations": 50}
    got = client.infer("digits", [tensor(array, datatype)], parameters=parameters, request_id="7", headers=USER)
    other = rest.infer("digits", [tensor(array, datatype, of=triton_http)], parameters=parameters, headers=dict(USER))
    assert_equal(got, other)
    response = got.get_response()
    assert (response.id, response.model_name, response.model_version) == ("7", "digits", "2")
    assert [(one.name, one.datatype, list(one.shape)) for one in response.outputs[:2]] == [
        ("logits", "FP32", [8, 10]),
        ("iterations", "INT64", [8]),
    ]


def test_versions_outputs_and_values_per_row_may_be_named(
    client: triton.InferenceServerClient, rest: triton_http.InferenceServerClient, digits: NDArray[np.float64]
) -> None:
    tolerance, cap = np.array([1e-1, 1e-4] * 4, np.float32), np.array([1, 60, 60, 2] * 2)

    def inputs(of: Any) -> list[Any]:
        rows = tensor(digits.astype(np.float32), "FP32", of=of)
        return [tensor(tolerance, "FP32", "tolerance", of=of), rows, tensor(cap, "INT64", "max_iterations", of=of)]

    outputs = [triton.InferRequestedOutput("converged"), triton.InferRequestedOutput("logits")]
    got = client.infer("digits", inputs(triton), model_version="1", outputs=outputs, headers=USER)
    assert [one.name for one in got.get_response().outputs] == ["converged", "logits"]
    assert_equal(got, rest.infer("digits", inputs(triton_http), model_version="1", headers=dict(USER)), ("converged", "logits"))


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("FP32", "fp32_contents"),
        ("FP64", "fp64_contents"),
        ("INT8", "int_contents"),
        ("UINT16", "uint_contents"),
        ("INT64", "int64_contents"),
        ("UINT64", "uint64_contents"),
    ],
)
def test_tensors_may_be_typed_contents(
    stub: Any, client: triton.InferenceServerClient, digits: NDArray[np.float64], datatype: str, contents: str
) -> None:
    numbers = [float(value) if datatype.startswith("FP") else int(value) for value in digits.ravel()]
    request = typed(datatype, list(digits.shape), **{contents: numbers})
    got = triton.InferResult(stub.ModelInfer(request, metadata=tuple(USER.items())))
    assert_equal(got, client.infer("digits", [tensor(digits.astype(np.float32), "FP32")], headers=USER))


def typed(datatype: str, shape: list[int], **contents: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="inputs", datatype=datatype, shape=shape, contents=service_pb2.InferTensorContents(**contents))
    return request


@pytest.mark.parametrize(
    ("datatype", "contents", "message"),
    [
        ("FP32", {"fp64_contents": [0.0]}, "inputs[0].contents: must be raw_input_contents or fp32_contents for FP32"),
        ("FP16", {"fp32_contents": [0.0]}, "inputs[0].contents: must be raw_input_contents for FP16 (got fp32_contents)"),
        ("INT8", {"int_contents": [128] * 64}, "inputs[0].contents: must be within [-128, 127] (got 128)"),
        ("UINT8", {"uint_contents": [3] * 63}, "must be 64, 64 entries of UINT8 (got 63)"),
        ("FP32", {"fp32_contents": [17.0] * 64}, "inputs[0][0][0][0]: must be a finite number within [0, 16] (got 17.0)"),
        ("FP8", {}, "inputs[0].contents: must be raw_input_contents for FP8"),
        ("BYTES", {"bytes_contents": [b""] * 64}, "inputs[0].shape: must be [n] or [n, 1] (got [1, 1, 8, 8])"),
    ],
)
def test_wrong_contents_are_invalid_arguments(stub: Any, datatype: str, contents: dict[str, Any], message: str) -> None:
    request = typed(datatype, [1, 1, 8, 8], **contents)
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(request, metadata=tuple(USER.items()))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in error.value.details()
    both = typed("FP32", [1, 1, 8, 8], fp32_contents=[0.0] * 64)
    both.raw_input_contents.append(bytes(256))
    with pytest.raises(grpc.RpcError, match="must be left out with raw_input_contents"):
        stub.ModelInfer(both, metadata=tuple(USER.items()))


def test_classes_and_images_are_bytes(
    client: triton.InferenceServerClient, stub: Any, rest: triton_http.InferenceServerClient, digits: NDArray[np.float64]
) -> None:
    files = [images.encode(row, DIGITS.input) for row in digits[:3]]
    array = np.array(files, object).reshape(3, 1)
    got = client.infer("digits", [tensor(array, "BYTES")], headers=USER)
    assert_equal(got, rest.infer("digits", [tensor(array, "BYTES", of=triton_http)], headers=dict(USER)))
    request = typed("BYTES", [3], bytes_contents=files)
    assert_equal(got, triton.InferResult(stub.ModelInfer(request, metadata=tuple(USER.items()))))
    outputs = [triton.InferRequestedOutput("logits", class_count=2)]
    classes = client.infer("digits", [tensor(array, "BYTES")], outputs=outputs, headers=USER).as_numpy("logits")
    assert classes.shape == (3, 2)
    for row, entries in zip(got.as_numpy("logits"), classes, strict=True):
        value, index, label = entries[0].decode().split(":")
        assert (int(index), label) == (row.argmax(), str(row.argmax()))
        assert float(value) == pytest.approx(row.max(), abs=1e-5)


def test_what_describes_the_server_is_that_of_rest(client: triton.InferenceServerClient, fleet: RunningServer) -> None:
    def get(path: str) -> Any:
        return fleet.client.get(path).json()

    def as_json(call: Any, *arguments: Any) -> Any:
        return call(*arguments, headers=USER, as_json=True)

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits", headers=USER)
    assert client.is_model_ready("digits", "1", headers=USER)
    assert not client.is_model_ready("digits", "9", headers=USER)
    assert not client.is_model_ready("none", headers=USER)
    assert as_json(client.get_server_metadata) == get("/v2")
    metadata = as_json(client.get_model_metadata, "digits")
    described = get("/v2/models/digits")
    assert (metadata["versions"], metadata["platform"]) == (described["versions"], described["platform"])
    for kind in ("inputs", "outputs"):
        wanted = [{**one, "shape": [str(side) for side in one["shape"]]} for one in described[kind]]
        for one in wanted:
            one.pop("parameters", None)
        assert metadata[kind] == wanted
    config, wanted_config = as_json(client.get_model_config, "digits", "1")["config"], get("/v2/models/digits/config")
    assert config["parameters"] == wanted_config["parameters"]
    assert config["max_batch_size"] == wanted_config["max_batch_size"]
    assert [one["name"] for one in config["input"]] == ["inputs", "tolerance", "max_iterations"]
    assert config["output"][0] == {"name": "logits", "data_type": "TYPE_FP32", "dims": ["10"]}
    assert as_json(client.get_model_repository_index)["models"][0] == {"name": "digits", "version": "1", "state": "READY"}


def test_labels_are_a_property_of_the_metadata(fleet: RunningServer, address: str) -> None:
    request = service_pb2.ModelMetadataRequest(name="digits").SerializeToString()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        answer = call(request, metadata=tuple(USER.items()))
    method = messages._POOL.FindServiceByName(messages.SERVICE).FindMethodByName("ModelMetadata")
    response = messages.GetMessageClass(method.output_type).FromString(answer)
    assert json.loads(response.properties["labels"]) == DIGITS.classes


def test_errors_are_status_codes(client: triton.InferenceServerClient, digits: NDArray[np.float64]) -> None:
    row = [tensor(digits[:1].astype(np.float32), "FP32")]
    slow = [tensor(np.zeros((1, 4), np.float32), "FP32")]
    refused("NOT_FOUND", "no model 'none' .available: digits", client.infer, "none", row, headers=USER)
    refused("NOT_FOUND", "not found: /v2/models//infer", client.infer, "", row, headers=USER)
    refused("NOT_FOUND", "no version 9", client.get_model_config, "digits", "9", headers=USER)
    refused("INVALID_ARGUMENT", "version: must be a positive", client.infer, "digits", row, "one/../2", headers=USER)
    refused("INVALID_ARGUMENT", "tolerance: ", client.infer, "digits", row, parameters={"tolerance": -1.0}, headers=USER)
    many = tensor(np.zeros((1025, 4), np.float32), "FP32")
    refused("INVALID_ARGUMENT", "at most 1024 rows", client.infer, "slow", [many], headers=USER)
    deadline = {"deadline_ms": 1e-6}
    refused("DEADLINE_EXCEEDED", "deadline passed", client.infer, "slow", slow, parameters=deadline, headers=USER)
    refused("UNIMPLEMENTED", "SystemSharedMemoryStatus: not offered", client.get_system_shared_memory_status, headers=USER)
    refused("UNIMPLEMENTED", "TraceSetting: not offered", client.get_trace_settings, headers=USER)


def test_bytes_that_are_no_message_are_an_invalid_argument(fleet: RunningServer, address: str) -> None:
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff")
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "must be inference.ModelInferRequest" in error.value.details()


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_messages_have_the_limit_of_bodies(client: triton.InferenceServerClient, compression: str | None) -> None:
    over, far_over = (tensor(np.zeros((rows, 1, 8, 8), np.float32), "FP32") for rows in (500, 1000))
    more = {"headers": USER, "compression_algorithm": compression}
    refused("INVALID_ARGUMENT", "at most 100000 bytes", client.infer, "digits", [over], **more)
    refused("RESOURCE_EXHAUSTED", "larger than max", client.infer, "digits", [far_over], **more)


@pytest.mark.long
def test_a_port_that_cannot_be_served_ends_the_server_before_it_starts(fleet: RunningServer, address: str) -> None:
    def start(setup: str) -> "subprocess.CompletedProcess[str]":
        program = f"import sys; {setup}; from app.cli.serve import main; main('python -m app', sys.argv[1:])"
        command = [sys.executable, "-c", program, "--port", "0", "--grpc-port", address.rpartition(":")[2]]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    taken, missing = start("pass"), start("sys.modules['grpc'] = None")
    assert (taken.returncode, "cannot bind port" in taken.stderr) == (3, True)
    assert (missing.returncode, missing.stderr) == (2, "--grpc-port needs the packages of the extra grpc\n")


def test_keys_are_those_of_http(client: triton.InferenceServerClient, digits: NDArray[np.float64]) -> None:
    row = [tensor(digits[:1].astype(np.float32), "FP32")]
    refused("UNAUTHENTICATED", "authorization: must be Bearer and an API key .got none", client.infer, "digits", row)
    wrong = {"x-api-key": "wrong"}
    refused("UNAUTHENTICATED", "got an unknown key", client.infer, "digits", row, headers=wrong)
    refused("UNAUTHENTICATED", "got an unknown key", client.get_model_config, "digits", headers=wrong)
    assert client.infer("digits", row, headers={"x-api-key": "user"}).as_numpy("logits").shape == (1, 10)
    refused("PERMISSION_DENIED", "must be an admin key", client.unload_model, "wild", headers=USER)
    client.unload_model("wild", headers=ADMIN)
    assert not client.is_model_ready("wild", headers=USER)
    client.load_model("wild", headers=ADMIN)
    assert client.is_model_ready("wild", headers=USER)
    refused("INVALID_ARGUMENT", "config", client.load_model, "wild", headers=ADMIN, config="{}")


def test_a_stream_answers_each_request(client: triton.InferenceServerClient, digits: NDArray[np.float64]) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers=USER)
    for k in range(8):
        client.async_stream_infer("digits", [tensor(digits[k : k + 1].astype(np.float32), "FP32")], request_id=str(k))
    client.async_stream_infer("none", [tensor(digits[:1].astype(np.float32), "FP32")])
    got = [answers.get(timeout=20) for _ in range(9)]
    client.stop_stream()
    whole = client.infer("digits", [tensor(digits.astype(np.float32), "FP32")], headers=USER)
    for k, (result, error) in enumerate(got[:8]):
        assert error is None
        assert result.get_response().id == str(k)
        assert result.as_numpy("iterations") == whole.as_numpy("iterations")[k : k + 1]
    assert "no model 'none'" in str(got[8][1])


def test_a_client_that_leaves_or_is_out_of_time_has_its_rows_dropped(fleet: RunningServer, address: str) -> None:
    endless = [tensor(np.arange(4, dtype=np.float32)[None], "FP32")]
    parameters = {"tolerance": 1e-30, "max_iterations": 1_000_000}
    cancelled = lambda: fleet.metric("jfb_http_requests_total", model="slow", status="499")  # noqa: E731
    before = cancelled()

    async def leave() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            task = asyncio.create_task(client.infer("slow", endless, parameters=parameters, headers=USER))
            await asyncio.sleep(0)
            with pytest.raises(InferenceServerException, match="Deadline"):
                await client.infer("slow", endless, parameters=parameters, headers=USER, client_timeout=0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(leave())
    wait_until(lambda: cancelled() == before + 2, 20, "both requests have ended as cancelled")
    assert fleet.metric("jfb_engine_active_rows", model="slow") == 0


def test_every_answer_under_load_is_right_and_counted_and_logged(
    fleet: RunningServer, client: triton.InferenceServerClient, address: str
) -> None:
    rows = np.random.default_rng(1).integers(0, 17, size=(64, 1, 8, 8)).astype(np.float32)
    whole = client.infer("digits", [tensor(rows, "FP32")], headers=USER)
    before = client.get_inference_statistics("digits", "2", headers=USER).model_stats[0]
    requests = 300

    async def load() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each client
        clients = [triton_aio.InferenceServerClient(address, channel_args=options) for _ in range(8)]
        in_flight = asyncio.Semaphore(64)

        async def one(number: int) -> None:
            k = number % 64
            async with in_flight:
                result = await clients[number % 8].infer("digits", [tensor(rows[k : k + 1], "FP32")], headers=USER)
            assert result.as_numpy("iterations")[0] == whole.as_numpy("iterations")[k]
            np.testing.assert_allclose(result.as_numpy("logits")[0], whole.as_numpy("logits")[k], atol=1e-5)

        await asyncio.gather(*map(one, range(requests)))
        for one_client in clients:
            await one_client.close()

    asyncio.run(load())
    after = client.get_inference_statistics("digits", "2", headers=USER).model_stats[0]
    assert after.inference_count - before.inference_count == requests
    assert after.inference_stats.success.count - before.inference_stats.success.count == requests
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert fleet.client.get("/v2/models/digits/versions/2/stats").json()["model_stats"][0]["inference_count"] >= requests
    lines = [json.loads(line) for line in fleet.log.read_text().splitlines() if '"route":"/v2/models/{name}/infer"' in line]
    assert sum(line["status"] == 200 and line["rows"] == 1 and line["model"] == "digits" for line in lines) >= requests
