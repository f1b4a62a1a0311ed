"""Events of the iterations, over a real socket."""

import json
import socket
from base64 import b64decode
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import jfb
from app.schemas.native import MAX_TRACED_ROWS, EngineTimings, IterationEvent, StateMagnitude
from tests.app.running import ENDLESS, RunningServer, rejected, rows, wait_until

EVENTS = {"accept": "text/event-stream"}


def events(client: httpx.Client, content: object, path: str = "/predict") -> list[tuple[str, dict[str, object]]]:
    """All events of a request, each its name and data."""
    answer = client.post(path, json=content, headers=EVENTS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    result = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        result.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return result


def test_each_iteration_of_each_row_is_an_event_and_the_answer_is_the_last(
    client: httpx.Client, digits: NDArray[np.float64]
) -> None:
    body = {"inputs": digits.tolist(), "tolerance": [1e-1, 1e-4] * 4}
    answer = client.post("/predict", json=body).json()
    *iterations, (name, last) = events(client, body)
    assert name == "answer"
    timings = EngineTimings.model_validate(last.pop("timings"))
    assert last == answer
    assert timings.compute_ms > 0
    assert timings.total_ms == pytest.approx(timings.queue_ms + timings.compute_ms, abs=2e-3)
    assert {name for name, _ in iterations} == {"iteration"}
    reported = sorted((event["row"], event["iteration"]) for _, event in iterations)  # type: ignore[type-var]
    assert reported == [(row, k + 1) for row, one in enumerate(answer["predictions"]) for k in range(one["iterations"])]


def test_the_last_iteration_that_is_reported_of_a_row_is_its_answer(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    *iterations, (_, last) = events(client, {"inputs": digits[:3].tolist(), "tolerance": 1e-4})
    for row, prediction in enumerate(last["predictions"]):  # type: ignore[arg-type, var-annotated]
        mine = [event for _, event in iterations if event["row"] == row]
        residuals = [event["residual"] for event in mine]
        assert residuals[-1] == pytest.approx(prediction["residual"], rel=1e-6)
        assert min(residuals[:-1]) > 1e-4 >= residuals[-1]  # type: ignore[operator, type-var]
        for event in mine:
            top = event["top"]
            assert len(top) == 5  # type: ignore[arg-type]
            assert [one["label"] for one in top] == [str(one["index"]) for one in top]  # type: ignore[attr-defined]
            likely = [one["probability"] for one in top]  # type: ignore[attr-defined]
            assert likely == sorted(likely, reverse=True)
        best = mine[-1]["top"][0]  # type: ignore[index]
        assert best["index"] == prediction["index"]
        assert best["probability"] == pytest.approx(max(prediction["probabilities"]), abs=1e-6)


def test_events_arrive_while_the_iteration_goes_on_and_leaving_ends_it(strict_server: RunningServer) -> None:
    path = "/models/slow/predict"
    with strict_server.client.stream("POST", path, json=ENDLESS, headers=EVENTS) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: iteration"
        assert json.loads(next(lines).removeprefix("data: "))["iteration"] == 1
        assert rows(strict_server, "active") == 1
    wait_until(lambda: rows(strict_server, "active") == 0, 10, "its row is gone")


def test_a_client_that_leaves_without_reading_ends_it_too(strict_server: RunningServer) -> None:
    url = httpx.URL(strict_server.url)
    body = json.dumps(ENDLESS).encode()
    head = (
        "POST /models/slow/predict HTTP/1.1\r\nhost: test\r\naccept: text/event-stream\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80)) as sock:
        sock.sendall(head.encode() + body)
        wait_until(lambda: rows(strict_server, "active") == 1, 10, "its row is in")
    wait_until(lambda: rows(strict_server, "active") == 0, 10, "its row is gone")
    assert "unhandled exception" not in strict_server.log.read_text()


def test_a_request_that_is_rejected_has_its_status_and_no_event(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    for body, status in (
        ({"inputs": digits.tolist(), "tolerance": -1}, 422),
        ({"inputs": digits.tolist(), "deadline_ms": 1e-6}, 504),
    ):
        answer = client.post("/predict", json=body, headers=EVENTS)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/json"


def test_a_full_queue_is_429_for_events_too(strict_server: RunningServer) -> None:
    four = ENDLESS | {"inputs": [[0, 1, 2, 3]] * 4}
    with strict_server.client.stream("POST", "/models/slow/predict", json=four, headers=EVENTS) as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = strict_server.client.post("/models/slow/predict", json=four, headers=EVENTS)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
    wait_until(lambda: rows(strict_server, "active") == 0, 10, "its rows are gone")


def test_a_row_that_diverges_is_reported_without_labels(client: httpx.Client) -> None:
    *iterations, (_, last) = events(client, {"inputs": [[1, 0.5]]}, "/models/wild/predict")
    assert iterations[-1][1]["residual"] is None
    assert iterations[-1][1]["top"] == []
    assert last["predictions"][0]["status"] == "diverged"  # type: ignore[index]


def test_a_traced_event_shows_the_state_that_jfb_solve_is_in_after_as_many_iterations(
    client: httpx.Client, store: Path, digits: NDArray[np.float64]
) -> None:
    network = jfb.load(store / "digits" / "2").network
    *iterations, (_, last) = events(client, {"inputs": digits.tolist(), "tolerance": [1e-1, 1e-4] * 4, "trace": "state"})
    assert len(iterations) == sum(one["iterations"] for one in last["predictions"])  # type: ignore[attr-defined, misc]
    injection = network.inject(torch.from_numpy(digits).float())
    for _, content in iterations:
        event = IterationEvent.model_validate_json(json.dumps(content))
        assert isinstance(event.state, StateMagnitude)
        state, row = event.state, slice(event.row, event.row + 1)
        solution = jfb.solve(network, injection[row], tolerance=1e-30, max_iterations=event.iteration)
        expected = np.linalg.norm(solution.fixed_point[0].numpy(), axis=0)
        assert state.shape == expected.shape
        assert state.peak == pytest.approx(expected.max(), rel=1e-4)
        shares = np.frombuffer(b64decode(state.magnitude), np.uint8).reshape(state.shape)
        assert shares * (state.peak / 255) == pytest.approx(expected, abs=0.52 * state.peak / 255)


def test_a_trace_can_be_requested_in_the_query_and_nothing_else_is_traced(
    client: httpx.Client, digits: NDArray[np.float64]
) -> None:
    one = {"inputs": digits[:1].tolist()}
    *traced, (_, last) = events(client, one, "/predict?trace=state")
    *plain, (_, same) = events(client, one)
    assert last["predictions"] == same["predictions"]
    assert all("state" in event for _, event in traced)
    assert not any("state" in event for _, event in plain)
    assert [{name: value for name, value in event.items() if name != "state"} for _, event in traced] == [e for _, e in plain]


def test_the_traces_of_many_iterations_are_few(strict_server: RunningServer) -> None:
    body = ENDLESS | {"max_iterations": 300, "trace": "state"}
    *iterations, _ = events(strict_server.client, body, "/models/slow/predict")
    assert len(iterations) == 300
    traced = [event["iteration"] for _, event in iterations if "state" in event]
    assert traced == [*range(1, 129), 160, 192, 224, 256, 288]
    assert iterations[0][1]["state"]["shape"] == [1, 8]  # type: ignore[index]


def test_a_trace_that_cannot_be_sent_is_rejected(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    one = {"inputs": digits[:1].tolist()}
    many = {"inputs": [digits[0].tolist()] * (MAX_TRACED_ROWS + 1), "trace": "state"}
    rejected(client.post("/predict", json=one | {"trace": "logits"}, headers=EVENTS), 422, "trace: must be state (got ")
    rejected(client.post("/predict", json=one | {"trace": "state"}), 422, "trace: ", "accept: text/event-stream")
    rejected(client.post("/predict", json=many, headers=EVENTS), 422, "trace: ", "more than 8 rows (got 9 rows)")
    # The Open Inference Protocol has no stream.
    tensor = {"name": "inputs", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": digits[0].ravel().tolist()}
    infer = {"inputs": [tensor], "parameters": {"trace": "state"}}
    assert client.post("/v2/models/digits/infer", json=infer).status_code == 400
