"""Samples of a model: over HTTP, and in the examples that people paste."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from app.engine_client.messages import ServedVersion
from app.routes.examples import samples
from jfb import ModelConfig
from tests.app.running import RunningServer, wait_until

VECTORS = ModelConfig.model_validate(
    {
        "architecture": {"name": "implicit_mlp"},
        "input": {"shape": [2], "kind": "vector", "low": -1, "high": 1},
        "classes": ["no", "yes"],
    }
)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ('[{"input": [0.5, 1.0], "label": "yes"}, {"input": [0, 0], "label": "no"}]', 2),
        ("[]", 0),
        ("not JSON", 0),
        ('[{"input": [0.5, 1.5], "label": "out of range"}]', 0),
        ('[{"input": [0.5], "label": "too short"}]', 0),
        ('[{"input": [0.5, "a"], "label": "no number"}]', 0),
        ('[{"label": "no input"}]', 0),
    ],
)
def test_only_what_the_model_takes_is_a_sample(tmp_path: Path, content: str, count: int) -> None:
    model = ServedVersion("vectors", 3, VECTORS.model_dump_json())
    folder = tmp_path / "vectors" / "3"
    folder.mkdir(parents=True)
    assert samples(model, tmp_path) == []
    (folder / "samples.json").write_text(content)
    assert len(samples(model, tmp_path)) == count


def test_the_samples_of_a_trained_model_are_inputs_with_their_labels(digits_server: RunningServer) -> None:
    found = digits_server.client.get("/models/digits/samples").json()
    assert [one["label"] for one in found] == [str(digit) for digit in range(10)]
    answer = digits_server.predict({"inputs": [one["input"] for one in found]})
    assert answer.status_code == 200
    right = [one["label"] == said["label"] for one, said in zip(found, answer.json()["predictions"], strict=True)]
    assert sum(right) >= 9


def test_a_model_without_samples_has_an_empty_list(server: RunningServer) -> None:
    assert server.client.get("/models/digits/samples").json() == []
    assert server.client.get("/models/nothing/samples").status_code == 404


def test_the_examples_use_a_sample(digits_server: RunningServer) -> None:
    sample = digits_server.client.get("/models/digits/samples").json()[0]
    description = digits_server.client.get("/openapi.json").json()["paths"]
    examples = description["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert examples["inputs"]["value"]["inputs"] == [sample["input"]]
    as_numbers, as_image = (
        digits_server.predict(examples[name]["value"]).json()["predictions"][0] for name in ("inputs", "images")
    )
    assert as_image["index"] == as_numbers["index"]
    assert as_image["probabilities"] == pytest.approx(as_numbers["probabilities"], abs=0.02)  # 256 levels
    infer = description["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert infer["numbers"]["value"]["inputs"][0]["data"] == np.ravel(sample["input"]).tolist()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_printed_command_uses_a_sample(digits_server: RunningServer, digits_store: Path) -> None:
    wait_until(lambda: "Try: curl" in digits_server.log.read_text(), 10, "the banner is printed")
    line = re.search(r"^Try: (curl .*)$", digits_server.log.read_text(), re.MULTILINE)
    assert line
    said = subprocess.run(line[1], shell=True, check=True, capture_output=True, timeout=30).stdout
    sample = json.loads((digits_store / "digits" / "1" / "samples.json").read_text())[0]
    assert json.loads(said)["predictions"][0]["label"] == sample["label"]
