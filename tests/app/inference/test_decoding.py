"""The fast decoders and encoders against the pydantic models that document them."""

import asyncio
import itertools
import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from app.engine_client.messages import Iteration, LabelStop, Request, Result, ServedVersion, Timings
from app.http.errors import ApiError
from app.inference import open_inference
from app.inference.decoding import build_request, decode_predict
from app.inference.response import iteration_events, predict_response
from app.main import create_app
from app.schemas import open_inference as schemas
from app.schemas.native import IterationEvent, PredictResponse
from app.settings import Settings
from app.supervisor.supervisor import RunFolder
from tests.app.posted import posted
from tests.app.store import WILD

MODEL = ServedVersion(
    "wild", 1, WILD.model_dump_json(), "f", 0.0, ("picard", "anderson"), LabelStop("estimate", ("picard",), 1e-4)
)
SETTINGS = Settings(max_rows_per_request=4)
ROWS = [[0, 0.5], [1, -1]]


def decode(content: object) -> Request:
    """Decode JSON as the predict routes do."""
    http = posted(json.dumps(content).encode(), "application/json", SETTINGS)
    return asyncio.run(decode_predict(http, 100.0, MODEL))


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The published schemas."""
    return create_app(Settings(), RunFolder(tmp_path_factory.mktemp("run"), 1)).openapi()


def is_valid(description: dict[str, Any], model: str, content: object) -> bool:
    """Whether JSON fits a published schema."""
    schema = {"$ref": f"#/components/schemas/{model}", "components": description["components"]}
    return Draft202012Validator(schema).is_valid(json.loads(json.dumps(content)))


def is_accepted(content: object) -> bool:
    """Whether the decoder takes JSON."""
    try:
        decode(content)
    except ApiError:
        return False
    return True


VALUES: dict[str, list[object]] = {
    "tolerance": [1e-3, 1, [0.1, 2], 0, -1, [0.1, 0], True, None, "1", 1e-39, 1e39],
    "max_iterations": [1, 1000, [1, 2], 0, [1, 0], True, None, "1", 1.5],
    "deadline_ms": [0.5, 7, [1, 2.5], 0, -1, None, True],
    "solver": ["picard", None, 1, ["picard"]],
    "stop": ["tolerance", "label", "soon", None, 1],
    "session": ["s", None, "", "x" * 128, "x" * 129, 7],
    "images": [5, "x", []],
    "other": [1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_the_predict_decoder_and_its_model_agree_on_a_field(description: dict[str, Any], name: str, value: object) -> None:
    content = {"inputs": ROWS, name: value}
    assert is_accepted(content) == is_valid(description, "PredictRequest", content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({"inputs": st.just(ROWS)}, optional={name: st.sampled_from(VALUES[name]) for name in VALUES}))
def test_what_the_predict_decoder_accepts_is_valid_for_its_model(description: dict[str, Any], content: dict[str, object]) -> None:
    if is_accepted(content):
        assert is_valid(description, "PredictRequest", content)


def test_a_request_has_the_defaults_of_the_model_and_deadlines_from_its_arrival() -> None:
    plain = decode({"inputs": ROWS})
    assert (plain.model, plain.version, plain.fingerprint, plain.stop, plain.solver) == ("wild", 1, "f", "tolerance", None)
    assert np.frombuffer(plain.inputs, "<f4").tolist() == [0, 0.5, 1, -1]
    assert (plain.tolerance, plain.max_iterations, plain.deadline) == ([1e-3] * 2, [100] * 2, [None] * 2)
    request = decode({"inputs": ROWS, "deadline_ms": [500, 1000], "stop": "label", "max_iterations": 3.0})
    assert (request.deadline, request.tolerance, request.max_iterations) == ([100.5, 101.0], [1e-4] * 2, [3, 3])


TENSOR = {"name": "inputs", "datatype": "FP32", "shape": [2, 2], "data": ROWS}
INFER_FIELDS: dict[str, list[object]] = {
    "id": ["", "x", 1, None],
    "outputs": [[], [{"name": "logits"}], [{"name": "logits", "parameters": {"binary_data": True}}], [{"name": 1}], 5],
    "parameters": [
        *({}, {"tolerance": 0.1}, {"max_iterations": 2}, {"deadline_ms": 5}, {"timeout": 7}, {"binary_data_output": True}),
        *({"timeout": "7"}, {"binary_data_output": 1}, {"other": 1}, {"solver": "picard"}, {"stop": "label"}, {"session": "s"}),
    ],
    "inputs": [
        *([], [TENSOR], [TENSOR | {"datatype": "FP64"}], [TENSOR | {"datatype": "FP8"}], [TENSOR | {"shape": [-1]}], 7),
        *([TENSOR | {"parameters": {"other": 1}}], [TENSOR | {"name": None}], [{"name": "inputs"}]),
    ],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in INFER_FIELDS.items() for value in values])
def test_what_the_infer_decoder_accepts_is_valid_for_its_model(description: dict[str, Any], name: str, value: object) -> None:
    content = {"inputs": [TENSOR], name: value}
    try:
        body, tail = open_inference.split(json.dumps(content).encode(), None)
        open_inference.requested_outputs(body)
        rows, parameters = open_inference.decode_infer(body, tail, MODEL, SETTINGS)
        assert isinstance(rows, np.ndarray)
        asyncio.run(build_request(posted(b"", "application/json", SETTINGS), rows, parameters, MODEL, 0.0))
    except ApiError:
        return
    assert is_valid(description, "InferRequest", content)


def result(status: str, iterations: int, residual: float, *, label_stop: bool = False) -> Result:
    """Two rows, of which the first ended so."""
    logits = np.array([[math.nan, math.nan] if iterations == 0 or status == "diverged" else [1, 2], [3, 1]], np.float32)
    statuses = [status, "converged"]
    margin, bound = ([1.5, 2.0], [math.inf, 0.5]) if label_stop else (None, None)
    return Result(0, logits.tobytes(), [iterations, 4], [residual, 1e-4], statuses, Timings(), margin, bound)


RESULTS = [
    result("converged", 3, 1e-4),
    result("max_iterations", 9, 0.5),
    result("deadline", 0, math.nan),
    result("deadline", 2, 0.5),
    result("diverged", 2, math.inf),
    result("label_stable", 2, 0.5, label_stop=True),
]


@pytest.mark.parametrize("ended", RESULTS, ids=lambda one: one.status[0])
def test_responses_are_valid_for_their_models(ended: Result) -> None:
    response = PredictResponse.model_validate_json(msgspec.json.encode(predict_response(MODEL, ended)))
    assert response.predictions[1].label == "calm"
    assert (response.predictions[0].label is None) == (ended.iterations[0] == 0 or ended.status[0] == "diverged")
    stop = "label" if ended.margin else "tolerance"
    for binary, id in itertools.product((True, False), ({}, {"id": "x"})):
        parameters: dict[str, Any] = {"stop": stop, "binary_data_output": binary}
        body, _ = open_inference.split(json.dumps({"inputs": [TENSOR], "parameters": parameters, **id}).encode(), None)
        encoded, headers = open_inference.encode_infer(body, open_inference.requested_outputs(body), MODEL, ended)
        length = int(headers.get(open_inference.JSON_LENGTH_HEADER, len(encoded)))
        outputs = schemas.InferResponse.model_validate_json(encoded[:length]).outputs
        assert len(outputs) == (6 if stop == "label" else 4)


@given(st.lists(st.floats(width=32), min_size=2, max_size=2))
def test_a_row_is_answered_the_same_alone_and_among_many(logits: list[float]) -> None:
    def predictions(rows: int) -> list[Any]:
        encoded = np.array([logits] * rows, np.float32).tobytes()
        ended = Result(0, encoded, [1] * rows, [0.5] * rows, ["converged"] * rows, Timings())
        found: list[Any] = json.loads(msgspec.json.encode(predict_response(MODEL, ended)))["predictions"]
        return found

    (alone,), many = predictions(1), predictions(64)
    assert many == [many[0]] * 64
    assert alone | {"probabilities": None} == many[0] | {"probabilities": None}
    np.testing.assert_allclose(alone["probabilities"] or [], many[0]["probabilities"] or [], rtol=2e-9, atol=1e-40)


@pytest.mark.parametrize("residual", [0.5, math.nan])
def test_events_are_valid_for_their_model(residual: float) -> None:
    iteration = Iteration(0, np.array([[1, 2]], np.float32).tobytes(), [1], [residual], rows=[0])
    (event,) = iteration_events(MODEL, iteration)
    parsed = IterationEvent.model_validate_json(msgspec.json.encode(event))
    assert [one.label for one in parsed.top] == (["wild", "calm"] if residual == 0.5 else [])
