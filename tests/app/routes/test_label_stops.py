"""``"stop": "label"`` over a real socket: what it answers, alone and in company, and what it says of itself."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import jfb
from jfb import ModelConfig, checkpoint
from jfb.config import LabelCalibration, LearnedStartSpec
from jfb.learned_start import LearnedStart
from jfb.store import new_version
from tests.app.running import RunningServer
from tests.app.store import network_of

CALIBRATION = LabelCalibration(
    safety=1.5,
    sensitivity=1.0,
    tolerance=1e-5,
    validation_inputs=5000,
    validation_differing=2,
    inputs=10_000,
    differing=5,
    iterations=6.25,
)
ANYBODYS = ModelConfig.model_validate(
    {
        "architecture": {"name": "authors_resnet", "arguments": {"scale": 0.7}},
        "input": {"shape": [1, 12, 12], "kind": "image", "low": 0, "high": 255},
        "classes": ["a", "b", "c"],
        "serving": {"tolerance": 0.1, "max_iterations": 200, "label_calibration": CALIBRATION.model_dump()},
    }
)
"""A network that is no contraction by construction."""
UNKNOWN = ANYBODYS.model_copy(update={"serving": ANYBODYS.serving.model_copy(update={"label_calibration": None})})
START = LearnedStartSpec(injection_shape=(32, 4, 4), state_shape=(32, 4, 4), bottleneck=3)
ACCELERATED = ANYBODYS.model_copy(update={"serving": ANYBODYS.serving.model_copy(update={"solver": "anderson"})})
STARTED = ANYBODYS.model_copy(update={"learned_start": START})
INPUTS = np.random.default_rng(5).integers(0, 256, (30, 1, 12, 12)).astype(np.float32)


def add_models(store: Path) -> None:
    """Models whose label stops are estimates, or none, for ``special_store``."""
    for name, config in (("anybodys", ANYBODYS), ("unknown", UNKNOWN), ("accelerated", ACCELERATED), ("started", STARTED)):
        with new_version(store, name) as folder:
            network = network_of(config, 4)
            if config.learned_start is not None:
                torch.manual_seed(0)
                network.learned_start = LearnedStart(**dict(START))
            checkpoint.save(folder, config, network)


def offline(folder: Path, inputs: np.ndarray, tolerance: float) -> jfb.Prediction:
    found = jfb.load(folder)
    stop = jfb.LabelStop.of(found.network, found.config.serving)
    assert stop is not None
    cap = found.config.serving.max_iterations
    rows = torch.from_numpy(inputs).float()
    return jfb.predict(found.network, rows, tolerance=tolerance, max_iterations=cap, label_stop=stop)


def assert_same(rows: list[dict[str, Any]], expected: jfb.Prediction, kind: str) -> None:
    solution = expected.solution
    assert solution.stability is not None
    counts = np.array([row["iterations"] for row in rows]) - solution.iterations.numpy()
    # A count may differ by one where rounding falls on the very threshold.
    assert np.abs(counts).max() <= 1
    assert np.count_nonzero(counts) <= 1
    assert [row["index"] for row in rows] == expected.logits.argmax(1).tolist()
    for k in np.flatnonzero(counts == 0).tolist():
        assert rows[k]["status"] == solution.status[k]
        assert rows[k]["stability"]["kind"] == kind
        assert rows[k]["stability"]["margin"] == pytest.approx(float(solution.stability.margin[k]), abs=1e-4)
        assert rows[k]["stability"]["bound"] == pytest.approx(float(solution.stability.bound[k]), rel=1e-2)
        assert (rows[k]["stability"]["margin"] > rows[k]["stability"]["bound"]) or rows[k]["status"] == "converged"


def test_an_estimate_is_what_jfb_predict_gives_alone_and_in_company(special_server: RunningServer, special_store: Path) -> None:
    expected = offline(special_store / "anybodys" / "1", INPUTS, CALIBRATION.tolerance)
    assert expected.solution.status.count("label_stable") > 20
    bodies = [{"inputs": INPUTS[k : k + 1].tolist(), "stop": "label"} for k in range(len(INPUTS))]
    alone = [special_server.predict(body).json()["predictions"][0] for body in bodies]
    assert_same(alone, expected, "estimate")
    strict = {"inputs": INPUTS.tolist(), "tolerance": 1e-6}
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(special_server.predict, strict | {"solver": solver}) for solver in ("picard", "anderson") * 2]
        company = list(pool.map(lambda body: special_server.predict(body).json()["predictions"][0], bodies))
        assert all(other.result().status_code == 200 for other in others)
    assert_same(company, expected, "estimate")
    assert all("stability" not in row for other in others for row in other.result().json()["predictions"])
    assert special_server.metric("jfb_rows_total", status="label_stable") == sum(
        row["status"] == "label_stable" for row in (*alone, *company)
    )


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_a_guarantee_is_what_jfb_predict_gives(server: RunningServer, store: Path, digits: np.ndarray, solver: str) -> None:
    answer = server.predict({"inputs": digits.tolist(), "stop": "label", "solver": solver, "max_iterations": 200})
    rows = answer.json()["predictions"]
    exact = jfb.predict(
        jfb.load(store / "digits" / "2").network.double(), torch.from_numpy(digits), tolerance=1e-10, max_iterations=2000
    )
    assert {row["stability"]["kind"] for row in rows} == {"guarantee"}
    assert [row["index"] for row in rows] == exact.logits.argmax(1).tolist()
    assert "label_stable" in {row["status"] for row in rows}
    if solver == "picard":
        assert_same(rows, offline(store / "digits" / "2", digits, 1e-4), "guarantee")


def test_label_stops_use_the_models_own_solver_and_every_solver_gives_the_same_labels(special_server: RunningServer) -> None:
    body = {"inputs": INPUTS.tolist(), "stop": "label"}
    own = special_server.predict(body, "/models/accelerated/predict").json()["predictions"]
    assert special_server.predict(body | {"solver": "anderson"}).json()["predictions"] == own
    by_picard = special_server.predict(body).json()["predictions"]
    assert [row["index"] for row in own] == [row["index"] for row in by_picard]
    assert sum(row["iterations"] for row in own) < sum(row["iterations"] for row in by_picard)


def test_a_deadline_that_passes_before_the_first_iteration_is_answered_from_the_learned_start(
    special_server: RunningServer, special_store: Path
) -> None:
    network = jfb.load(special_store / "started" / "1").network
    expected = network.readout(network.first_state(network.inject(torch.from_numpy(INPUTS))))
    body = {"inputs": INPUTS.tolist(), "deadline_ms": 1e-6}
    rows = special_server.predict(body, "/models/started/predict").json()["predictions"]
    assert {(row["iterations"], row["status"], row["residual"]) for row in rows} == {(0, "deadline", None)}
    assert [row["index"] for row in rows] == expected.argmax(1).tolist()
    assert [row["probabilities"] for row in rows] == pytest.approx(expected.softmax(1).numpy(), abs=1e-5)
    assert special_server.client.post("/models/anybodys/predict", json=body).status_code == 504

    headers = {"accept": "text/event-stream"}
    streamed = special_server.client.post("/models/started/predict", json=body, headers=headers)
    assert streamed.status_code == 200
    assert "event: iteration" not in streamed.text
    assert json.loads(streamed.text.split("data: ")[1])["predictions"] == rows

    tensor = {"name": "inputs", "datatype": "FP32", "shape": list(INPUTS.shape), "data": INPUTS.ravel().tolist()}
    infer = {"inputs": [tensor], "parameters": {"deadline_ms": 1e-6}, "outputs": [{"name": "logits"}, {"name": "iterations"}]}
    logits, iterations = special_server.client.post("/v2/models/started/infer", json=infer).json()["outputs"]
    assert logits["data"] == pytest.approx(expected.flatten().numpy(), abs=1e-4)
    assert set(iterations["data"]) == {0}


def test_a_tolerance_that_is_named_ends_rows_too(special_server: RunningServer) -> None:
    loose = special_server.predict({"inputs": INPUTS.tolist(), "stop": "label", "tolerance": 0.9}).json()["predictions"]
    assert {row["iterations"] for row in loose} <= {1, 2}
    assert {row["status"] for row in loose} == {"converged"}
    # An estimate needs one iteration that moves less.
    assert all(row["stability"]["bound"] is None for row in loose if row["iterations"] == 1)
    assert all(row["stability"]["margin"] >= 0 for row in loose)


def test_the_query_string_and_the_events_have_it_too(special_server: RunningServer) -> None:
    right = special_server.predict({"inputs": INPUTS[:4].tolist(), "stop": "label"}).json()
    file = io.BytesIO()
    np.save(file, INPUTS[:4])
    headers = {"content-type": "application/x-npy"}
    assert special_server.client.post("/predict?stop=label", content=file.getvalue(), headers=headers).json() == right
    events = special_server.client.post(
        "/predict?stop=label&solver=picard", content=file.getvalue(), headers=headers | {"accept": "text/event-stream"}
    ).text
    assert '"status":"label_stable","stability":{"margin":' in events.split("event: answer")[1]


def test_the_open_inference_protocol_has_it_too(special_server: RunningServer) -> None:
    rows = special_server.predict({"inputs": INPUTS.tolist(), "stop": "label"}).json()["predictions"]
    tensor = {"name": "inputs", "datatype": "FP32", "shape": list(INPUTS.shape), "data": INPUTS.ravel().tolist()}
    body = {"inputs": [tensor], "parameters": {"stop": "label"}}
    outputs = special_server.client.post("/v2/models/anybodys/infer", json=body).json()["outputs"]
    found = {output["name"]: output["data"] for output in outputs}
    assert list(found) == ["logits", "iterations", "residual", "converged", "margin", "bound"]
    assert found["iterations"] == [row["iterations"] for row in rows]
    assert found["converged"] == [row["status"] == "converged" for row in rows]
    for name in ("margin", "bound"):
        assert found[name] == pytest.approx([row["stability"][name] for row in rows], rel=1e-5)
    (only,) = special_server.client.post("/v2/models/anybodys/infer", json=body | {"outputs": [{"name": "bound"}]}).json()[
        "outputs"
    ]
    assert only["data"] == found["bound"]
    metadata = special_server.client.get("/v2/models/unknown").json()
    assert [output["name"] for output in metadata["outputs"]] == ["logits", "iterations", "residual", "converged"]


def test_a_model_says_what_it_offers_and_rejects_what_it_does_not(special_server: RunningServer) -> None:
    def error(answer: httpx.Response) -> str:
        assert answer.status_code == 422
        text: str = answer.json()["error"]
        return text

    described = special_server.client.get("/models/anybodys").json()
    assert described["solvers"] == ["picard", "anderson"]
    assert described["label_stop"] == {
        "kind": "estimate",
        "solvers": ["picard", "anderson"],
        "tolerance": 1e-5,
        "inputs": 10_000,
        "differing": 5e-4,
        "iterations": 6.25,
    }
    assert special_server.client.get("/models/unknown").json()["label_stop"] is None
    body = {"inputs": INPUTS[:1].tolist(), "stop": "label"}
    refusal = error(special_server.predict(body, "/models/unknown/predict"))
    assert refusal.startswith("stop: must be tolerance, as unknown has no label stops")
    assert refusal.endswith('(got "label")')
