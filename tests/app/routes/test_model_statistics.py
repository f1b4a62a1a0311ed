"""Statistics and configuration as Triton's clients read them, and what is not offered.

``supervisor.test_http_workers`` has the statistics of several HTTP workers.
"""

from collections.abc import Iterator

import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.app.running import RunningServer


@pytest.fixture(scope="module")
def v2_client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


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
