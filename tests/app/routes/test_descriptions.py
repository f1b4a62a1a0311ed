"""What the server says of itself: models, metrics, OpenAPI, the log."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.app.running import RunningServer, rejected, wait_until


def test_a_model_is_described(client: httpx.Client) -> None:
    assert client.get("/models/digits").json() == {
        "name": "digits",
        "version": 2,
        "versions": [1, 2],
        "aliases": {},
        "default": True,
        "architecture": "implicit_resnet",
        "input": {"shape": [1, 8, 8], "kind": "image", "dtype": "float32", "low": 0, "high": 16},
        "classes": [str(digit) for digit in range(10)],
        "tolerance": 1e-3,
        "max_iterations": 60,
        "max_iterations_limit": 1000,
        "residual_norm": "relative",
        "solver": "picard",
        "solvers": ["picard", "anderson"],
        "label_stop": {
            "kind": "guarantee",
            "solvers": ["picard", "anderson"],
            "tolerance": 1e-4,
            "inputs": None,
            "differing": None,
            "iterations": None,
        },
        "metrics": {"accuracy": 0.2},
        "files": {"README.md": 9},
        "refused": client.get("/models/digits").json()["refused"],
    }
    assert "format_version" in client.get("/models/digits").json()["refused"]["3"]
    slow = client.get("/models/slow").json()
    assert (slow["input"]["low"], slow["metrics"], slow["refused"], slow["default"]) == (None, None, {}, False)


def test_each_version_is_described_and_has_its_files(client: httpx.Client, store: Path) -> None:
    link = store / "digits" / "1" / "curves.png"
    link.symlink_to(store / "digits" / "2" / "config.json")  # it could lead anywhere
    try:
        first = client.get("/models/digits/versions/1").json()
        assert (first["version"], first["metrics"], first["files"]) == (1, {"accuracy": 0.1}, {"README.md": 9})
        card = client.get("/models/digits/versions/1/files/README.md")
        assert (card.text, card.headers["content-type"]) == ("# digits\n", "text/markdown; charset=utf-8")
        assert card.headers["x-content-type-options"] == "nosniff"
        for file in ("curves.png", "model.safetensors", "config.json", "nothing", "..%2f2%2fconfig.json"):
            answer = client.get(f"/models/digits/versions/1/files/{file}")
            assert answer.status_code == 404
            assert "safetensors" not in answer.text.partition("available")[2]
        rejected(client.get("/models/digits/versions/1/files/history.csv"), 404, "no file 'history.csv' (available: README.md)")
        rejected(client.get("/models/digits/versions/9/files/README.md"), 404, "model digits has no version 9")
        rejected(client.get("/models/digits/versions/x"), 404, "model digits has no alias 'x'")
    finally:
        link.unlink()


def test_browsers_get_a_page_of_a_model_and_programs_its_description(client: httpx.Client) -> None:
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    page = client.get("/models/digits", headers={"accept": browser})
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for accept in ("*/*", "application/json", "application/json, text/html;q=0.5", ""):
        description = client.get("/models/digits", headers={"accept": accept})
        assert description.json()["name"] == "digits"
        assert description.headers["vary"] == page.headers["vary"] == "accept"


def test_the_list_has_every_model_and_what_was_rejected(client: httpx.Client, strict_server: RunningServer) -> None:
    listed = client.get("/models").json()
    assert listed["default"] == "digits"
    assert listed["models"] == [client.get(f"/models/{name}").json() for name in ("digits", "slow", "wild")]
    assert list(listed["refused"]) == ["digits/3"]
    assert strict_server.client.get("/models").json()["default"] == "wild"  # published last


def test_health(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_the_metrics_count_the_work_of_the_engine_and_the_requests(server: RunningServer, digits: NDArray[np.float64]) -> None:
    def work() -> list[float]:
        names = ("step_evaluations_total", "iterations_total", "rows_ended_total")
        return [server.metric(f"jfb_engine_{name}", model="digits", version="2") for name in names]

    def requests(status: str) -> float:
        return server.metric("jfb_http_requests_total", method="POST", route="/models/{name}/predict", status=status)

    before, answered, refused = work(), requests("200"), requests("422")
    content = {"inputs": digits.tolist(), "tolerance": [1e-1, 1e-4] * 4}
    rows = server.predict(content, "/models/digits/predict").json()["predictions"]
    server.predict({"inputs": []}, "/models/digits/predict")
    iterations = sum(row["iterations"] for row in rows)
    assert [after - earlier for after, earlier in zip(work(), before, strict=True)] == [iterations, iterations, 8]
    assert (requests("200"), requests("422")) == (answered + 1, refused + 1)
    assert server.metric("jfb_engine_ready") == 1
    assert server.metric("jfb_engine_slots", model="digits", version="2") == 32


def test_unknown_paths_share_one_label_in_the_metrics(server: RunningServer) -> None:
    before = server.metric("jfb_http_requests_total", route="unknown", status="404")
    for path in ("/a", "/b", "/c"):
        server.client.get(path)
    assert server.metric("jfb_http_requests_total", route="unknown", status="404") == before + 3
    assert "/b" not in server.client.get("/metrics").text


def test_every_request_is_one_line_in_the_log_without_its_content(server: RunningServer) -> None:
    pixels = np.full((2, 1, 8, 8), 3.14159)
    server.client.post("/predict", json={"inputs": pixels.tolist()}, headers={"x-request-id": "one-line"})
    wait_until(lambda: "one-line" in server.log.read_text(), 5, "the line is in the log")
    (line,) = [line for line in server.log.read_text().splitlines() if "one-line" in line]
    entry = json.loads(line)
    assert entry["ms"] > 0
    assert {name: entry[name] for name in ("method", "route", "status", "rows", "request_id")} == {
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "rows": 2,
        "request_id": "one-line",
    }
    assert "3.14159" not in server.log.read_text()


@pytest.fixture(scope="module")
def description(client: httpx.Client) -> dict[str, Any]:
    """The OpenAPI description."""
    answer: dict[str, Any] = client.get("/openapi.json").json()
    return answer


def test_docs_show_the_description(client: httpx.Client) -> None:
    assert "/openapi.json" in client.get("/docs").text


def test_every_example_in_the_description_works(client: httpx.Client, description: dict[str, Any]) -> None:
    examples_sent = 0
    for path, operations in description["paths"].items():
        if path.endswith(("/load", "/unload")):
            continue  # what they do to a model, other tests would notice
        for method, operation in operations.items():
            values = {p["name"]: p["example"] for p in operation.get("parameters", []) if p["in"] == "path"}
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            bodies = [example["value"] for example in content.get("examples", {}).values()] or [None]
            assert method == "get" or bodies != [None]
            for body in bodies:
                answer = client.request(method, path.format(**values), json=body)
                assert answer.status_code == 200, (path, answer.text)
                examples_sent += 1
    assert examples_sent >= 11


def test_the_description_names_every_reference_and_every_error_as_it_is_sent(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    text = json.dumps(description)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schemas
    for operations in description["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    assert "HTTPValidationError" not in text


def test_answers_have_exactly_the_fields_that_the_description_gives_them(
    client: httpx.Client, description: dict[str, Any]
) -> None:
    schemas = description["components"]["schemas"]
    answer = client.post("/predict", json={"inputs": np.zeros((1, 1, 8, 8)).tolist()}).json()
    for name, content in (
        ("PredictResponse", answer),
        ("Prediction", answer["predictions"][0]),
        ("ModelList", client.get("/models").json()),
        ("ModelDescription", client.get("/models/digits").json()),
        ("Error", client.get("/models/none").json()),
    ):
        assert set(schemas[name]["required"]) == set(content)
        assert set(schemas[name]["properties"]) - {"stability", "timings"} == set(content)  # which other requests get
