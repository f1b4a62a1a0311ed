"""A client that openapi-python-client generates from /openapi.json, against the running server."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jfb import images
from tests.app.running import RunningServer
from tests.app.store import DIGITS

CONFIG = {
    "post_hooks": [],
    "content_type_overrides": dict.fromkeys(("application/x-npy", "image/png", "image/jpeg"), "application/octet-stream"),
}
"""The generator knows no images, and would warn that it leaves those bodies out."""


@pytest.fixture(scope="module")
def description(server: RunningServer) -> dict[str, Any]:
    found: dict[str, Any] = server.client.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def package(description: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the generated package, which can be imported."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(description))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    command = ["openapi-python-client", "generate", "--path", "openapi.json", "--config", "config.json", "--meta", "none"]
    command[:1] = [str(Path(sys.executable).with_name(command[0]))]
    done = subprocess.run([*command, "--output-path", "generated_client"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr + done.stdout  # or something was left out
    sys.path.insert(0, str(folder))
    yield "generated_client"
    sys.path.remove(str(folder))


class Generated:
    """The generated client of a server."""

    def __init__(self, package: str, client: Any) -> None:
        self._package, self._client = package, client
        self.models = importlib.import_module(f"{package}.models")
        self.types = importlib.import_module(f"{package}.types")

    def call(self, operation: str, *arguments: object, **named: object) -> Any:
        """Call ``operation``, such as ``predict.predict_model``; the parsed response."""
        return importlib.import_module(f"{self._package}.api.{operation}").sync(*arguments, client=self._client, **named)


@pytest.fixture(scope="module")
def generated(package: str, server: RunningServer) -> Iterator[Generated]:
    with importlib.import_module(f"{package}.client").Client(base_url=server.url) as client:
        yield Generated(package, client)


def test_inputs_get_typed_predictions(generated: Generated, server: RunningServer, digits: NDArray[np.float64]) -> None:
    body = generated.models.PredictInputs(inputs=digits.tolist(), tolerance=[0.1] * 4 + [1e-5] * 4)
    answer = generated.call("predict.predict_model", "digits", body=body)
    assert answer.to_dict() == server.predict({"inputs": digits.tolist(), "tolerance": [0.1] * 4 + [1e-5] * 4}).json()
    assert [one.iterations for one in answer.predictions] == [one["iterations"] for one in answer.to_dict()["predictions"]]
    first = generated.call("predict.predict_version", "digits", 1, body=body)
    assert (first.model, first.version, answer.version) == ("digits", 1, 2)


def test_a_form_of_files(generated: Generated, server: RunningServer, digits: NDArray[np.float64]) -> None:
    files = [images.encode(one, DIGITS.input) for one in digits[:2]]
    form = generated.models.PredictForm(
        file=[generated.types.File(file, file_name="x.png", mime_type="image/png") for file in files], max_iterations=[1, 2]
    )
    answer = generated.call("predict.predict", body=form, tolerance=1e-9)
    assert [one.iterations for one in answer.predictions] == [1, 2]


def test_errors_descriptions_and_health_are_typed(generated: Generated, server: RunningServer) -> None:
    body = generated.models.PredictInputs(inputs=[[0.0]])
    error = generated.call("predict.predict", body=body)
    assert isinstance(error, generated.models.Error)
    assert error.error.startswith("inputs: must have shape [n, 1, 8, 8]")
    models = generated.call("models.list_models")
    digits = models.models[0]
    assert (digits.name, digits.versions, digits.input_.shape) == ("digits", [1, 2], [1, 8, 8])
    assert generated.call("health.health").ready is True
    assert generated.call("open_inference_protocol.server_metadata").name == "jfb"


def test_infer_over_the_open_inference_protocol(generated: Generated) -> None:
    models = generated.models
    tensor = models.RequestInput("inputs", [1, 4], models.RequestInputDatatype.FP32, data=[0.0, 1.0, 2.0, 3.0])
    body = models.InferRequest([tensor], parameters=models.RequestParameters(max_iterations=3))
    answer = generated.call("open_inference_protocol.infer", "slow", body=body)
    assert {one.name: one.data for one in answer.outputs}["iterations"] == [3]


def test_operations_have_short_names_and_everything_is_described(description: dict[str, Any]) -> None:
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert {"predict", "predict_model", "predict_version", "list_models", "describe_model", "infer", "health"} <= set(names)
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 30
    undescribed = [
        f"{operation['operationId']}: {parameter['name']}"
        for operation in operations
        for parameter in operation["parameters"]
        if not parameter.get("description")
    ]
    for name, schema in description["components"]["schemas"].items():
        undescribed += [name] * ("description" not in schema)
        undescribed += [f"{name}.{field}" for field, one in schema.get("properties", {}).items() if "description" not in one]
    assert not undescribed


def test_the_version_is_that_of_the_package(description: dict[str, Any], server: RunningServer) -> None:
    assert description["info"]["version"] == server.client.get("/v2").json()["version"] != "0"
