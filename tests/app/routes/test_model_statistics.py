"""Statistics and configuration as Triton's clients read them, over several HTTP workers, and what is not offered."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.app.routes.test_open_inference import INFER, ROW
from tests.app.running import RunningServer, rejected, running_server, wait_until


@pytest.fixture(scope="module")
def fleet(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of two HTTP workers."""
    log = tmp_path_factory.mktemp("fleet") / "log"
    with running_server(store, log, default_model="digits", slots=32, http_workers=2) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def v2_client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def statistics(client: httpx.Client, path: str = "/v2/models/digits/versions/2/stats") -> dict[str, Any]:
    (one,) = client.get(path).json()["model_stats"]
    answer: dict[str, Any] = one
    return answer


def test_statistics_count_what_every_http_worker_has_answered(fleet: RunningServer) -> None:
    request = {"inputs": [ROW | {"shape": [3, 1, 8, 8], "data": [0] * 192}]}
    for _ in range(20):  # each over a connection of its own, so that both workers get some
        assert httpx.post(f"{fleet.url}{INFER}", json=request).status_code == 200
    rejected(httpx.post(f"{fleet.url}{INFER}", json={"inputs": []}), 400, "inputs")
    assert httpx.post(f"{fleet.url}/predict", json={"inputs": [np.zeros((1, 8, 8)).tolist()]}).status_code == 200
    wait_until(lambda: statistics(fleet.client)["inference_stats"]["success"]["count"] >= 21, 10, "all requests are counted")
    found = statistics(fleet.client)
    stats = found["inference_stats"]
    assert (found["name"], found["version"], found["inference_count"]) == ("digits", "2", 61)
    assert (stats["success"]["count"], stats["fail"]["count"]) == (21, 1)
    phases = [stats[name] for name in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert [phase["count"] for phase in phases] == [21] * 4
    assert sum(phase["ns"] for phase in phases) == stats["success"]["ns"] > 0
    assert found["execution_count"] >= 1
    assert {
        httpx.get(f"{fleet.url}/v2/models/digits/versions/2/stats").json()["model_stats"][0]["inference_count"] for _ in range(6)
    } == {61}


def test_tritonclient_reads_statistics_of_a_version_a_model_and_all(v2_client: triton.InferenceServerClient) -> None:
    def named(*arguments: str) -> list[tuple[str, str]]:
        found = v2_client.get_inference_statistics(*arguments)["model_stats"]
        return [(one["name"], one["version"]) for one in found]

    assert named("digits", "1") == [("digits", "1")]
    assert named("digits") == [("digits", "1"), ("digits", "2")]
    assert named() == [("digits", "1"), ("digits", "2"), ("slow", "1"), ("wild", "1")]
    with pytest.raises(InferenceServerException, match="no model 'none'"):
        named("none")


def test_tritonclient_reads_the_configuration(v2_client: triton.InferenceServerClient) -> None:
    config = v2_client.get_model_config("digits")
    assert (config["name"], config["max_batch_size"], config["platform"]) == ("digits", 1024, "jfb_safetensors")
    assert config["input"][0] == {"name": "inputs", "data_type": "TYPE_FP32", "dims": [1, 8, 8]}
    per_row = {"data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}, "optional": True}
    assert config["input"][1] == per_row | {"name": "tolerance"}
    assert config["output"][0] == {"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert config["parameters"]["labels"] == {"string_value": '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'}
    assert config["parameters"]["tolerance"] == {"string_value": "0.001"}
    assert v2_client.get_model_config("digits", "1") == config


def test_what_is_not_offered_says_so(v2_client: triton.InferenceServerClient) -> None:
    for ask, message in (
        (v2_client.get_system_shared_memory_status, "shared memory: not offered; send tensors in the request"),
        (v2_client.get_cuda_shared_memory_status, "shared memory: not offered"),
        (lambda: v2_client.register_system_shared_memory("region", "/region", 8), "shared memory: not offered"),
        (v2_client.get_trace_settings, "trace settings: not offered; the setting --otlp-endpoint"),
        (lambda: v2_client.update_trace_settings("digits", {"trace_rate": "1"}), "trace settings: not offered"),
        (v2_client.get_log_settings, "log settings: not offered"),
    ):
        with pytest.raises(InferenceServerException, match=message) as error:
            ask()
        assert error.value.status() == "501"
