"""The predict routes: every body that they take, and what they answer."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import jfb
from tests.app.running import RunningServer

NPY = {"content-type": "application/x-npy"}


def npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def image_file(pixels: NDArray[np.uint8], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def predictions(answer: httpx.Response) -> list[dict[str, object]]:
    assert answer.status_code == 200, answer.text
    result: list[dict[str, object]] = answer.json()["predictions"]
    return result


def test_an_answer_is_what_jfb_predict_computes_offline(client: httpx.Client, store: Path, digits: NDArray[np.float64]) -> None:
    answer = client.post("/predict", json={"inputs": digits.tolist(), "tolerance": 1e-4, "max_iterations": 50})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["model"] == "digits"
    assert answer.json()["version"] == 2

    checkpoint = jfb.load(store / "digits" / "2")
    offline = jfb.predict(checkpoint.network, torch.tensor(digits, dtype=torch.float32), tolerance=1e-4, max_iterations=50)
    rows = predictions(answer)
    probabilities = offline.logits.double().softmax(1)
    np.testing.assert_allclose([row["probabilities"] for row in rows], probabilities, atol=1e-5)
    assert [row["index"] for row in rows] == probabilities.argmax(1).tolist()
    assert [row["label"] for row in rows] == [str(index) for index in probabilities.argmax(1).tolist()]
    assert [row["iterations"] for row in rows] == offline.solution.iterations.tolist()
    np.testing.assert_allclose([row["residual"] for row in rows], offline.solution.residual, rtol=1e-2)
    assert [row["status"] for row in rows] == offline.solution.status


def test_each_route_uses_the_model_and_version_that_it_names(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    body = {"inputs": digits.tolist()}
    first = client.post("/models/digits/versions/1/predict", json=body)
    second = client.post("/models/digits/versions/2/predict", json=body)
    highest = client.post("/models/digits/predict", json=body)
    assert first.json()["version"] == 1
    assert highest.json() == second.json()
    assert highest.json() == client.post("/predict", json=body).json()
    assert predictions(first)[0]["probabilities"] != predictions(second)[0]["probabilities"]
    assert client.post("/models/slow/predict", json={"inputs": [[0, 1, 2, 3]], "max_iterations": 3}).json()["model"] == "slow"


def test_parameters_left_out_take_the_defaults_of_the_model(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    body = {"inputs": digits.tolist()}
    assert client.post("/predict", json=body).json() == client.post("/predict", json=body | {"tolerance": 1e-3}).json()
    capped = client.post("/models/slow/predict", json={"inputs": [[0, 1, 2, 3]], "tolerance": 1e-30})
    assert predictions(capped)[0]["iterations"] == 100
    assert predictions(capped)[0]["status"] == "max_iterations"


def test_a_list_of_parameters_has_one_for_each_row(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    twice = [digits[0].tolist()] * 3
    rows = predictions(
        client.post("/predict", json={"inputs": twice, "tolerance": [1e-1, 1e-5, 1e-5], "max_iterations": [60, 60, 4]})
    )
    assert [row["status"] for row in rows] == ["converged", "converged", "max_iterations"]
    assert rows[0]["iterations"] < rows[1]["iterations"]  # type: ignore[operator]
    assert rows[2]["iterations"] == 4
    assert rows[0]["residual"] <= 1e-1  # type: ignore[operator]
    assert rows[1]["residual"] <= 1e-5  # type: ignore[operator]


def test_a_cap_of_one_is_exactly_one_iteration(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    rows = predictions(client.post("/predict", json={"inputs": digits.tolist(), "tolerance": 1e-9, "max_iterations": 1}))
    assert [(row["iterations"], row["status"]) for row in rows] == [(1, "max_iterations")] * len(digits)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "<i8", ">f4", "float16", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_body_of_any_real_dtype_and_order_is_answered_like_json(
    client: httpx.Client, digits: NDArray[np.float64], dtype: str, order: str
) -> None:
    inputs = np.asarray(digits.astype(dtype), order=order)  # type: ignore[call-overload]
    answer = client.post("/predict", content=npy(inputs), headers=NPY, params={"tolerance": 0.01})
    assert answer.json() == client.post("/predict", json={"inputs": digits.tolist(), "tolerance": 0.01}).json()


def test_parameters_of_a_npy_body_stand_in_the_query_string_one_for_all_or_one_per_row(
    client: httpx.Client, digits: NDArray[np.float64]
) -> None:
    body = npy(digits[:3])
    one = client.post("/predict?tolerance=1e-9&max_iterations=2&deadline_ms=60000", content=body, headers=NPY)
    assert [row["iterations"] for row in predictions(one)] == [2, 2, 2]
    several = client.post("/predict?tolerance=1e-9&max_iterations=1&max_iterations=2&max_iterations=3", content=body, headers=NPY)
    assert [row["iterations"] for row in predictions(several)] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_an_image_body_is_one_row_scaled_into_the_range_of_the_model(client: httpx.Client, kind: str) -> None:
    flat = np.full((8, 8), 255, np.uint8)  # a flat image is the same in both formats
    answer = client.post("/predict?tolerance=0.01", content=image_file(flat, kind), headers={"content-type": f"image/{kind}"})
    white = client.post("/predict", json={"inputs": np.full((1, 1, 8, 8), 16.0).tolist(), "tolerance": 0.01})
    assert answer.json() == white.json()


def test_images_in_base64_are_rows_in_their_order(client: httpx.Client) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, size=(3, 8, 8)).astype(np.uint8)
    files = [base64.b64encode(image_file(image, "png")).decode() for image in pixels]
    answer = client.post("/predict", json={"images": files, "tolerance": 0.01})
    numbers = client.post("/predict", json={"inputs": (pixels[:, None] * (16 / 255)).tolist(), "tolerance": 0.01})
    np.testing.assert_allclose(
        [row["probabilities"] for row in predictions(answer)],  # type: ignore[misc]
        [row["probabilities"] for row in predictions(numbers)],  # type: ignore[misc]
        atol=1e-6,
    )


def test_data_uris_are_images_as_base64_is(client: httpx.Client) -> None:
    file = image_file(np.arange(64, dtype=np.uint8).reshape(8, 8), "png")
    text = base64.b64encode(file).decode()
    uris = [f"data:image/png;base64,{text}"] * 600  # a comma in each: they are not counted as 1,200 images
    answer = client.post("/predict", json={"images": [text, *uris], "tolerance": 0.01, "max_iterations": 3})
    first, *others = predictions(answer)
    assert others == [first] * 600


def test_the_files_of_a_form_are_rows_in_their_order(client: httpx.Client) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, size=(3, 8, 8)).astype(np.uint8)
    files = [image_file(image, "png") for image in pixels]
    numbers = {"images": [base64.b64encode(file).decode() for file in files]}
    form = [("file", ("x.png", file, "image/png")) for file in files]
    assert client.post("/predict", files=form).json() == client.post("/predict", json=numbers).json()
    limits = {"max_iterations": ["1", "2", "3"], "solver": "picard"}
    answer = client.post("/predict?tolerance=1e-9&max_iterations=60", files=form, data=limits)  # the form's take precedence
    assert answer.json() == client.post("/predict", json=numbers | {"tolerance": 1e-9, "max_iterations": [1, 2, 3]}).json()
    assert [row["iterations"] for row in predictions(answer)] == [1, 2, 3]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_uploads_a_file(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(image_file(np.full((8, 8), 255, np.uint8), "png"))
    command = ["curl", "-s", "-F", f"file=@{tmp_path / 'x.png'}", "-F", "tolerance=0.01", f"{server.url}/predict"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    white = {"inputs": np.full((1, 1, 8, 8), 16.0).tolist(), "tolerance": 0.01}
    assert answer == server.predict(white).json()


def test_a_diverged_row_has_nulls_and_its_neighbour_an_answer(client: httpx.Client) -> None:
    diverged, calm = predictions(client.post("/models/wild/predict", json={"inputs": [[1, 0.5], [0, 0]]}))
    assert diverged["status"] == "diverged"
    assert [diverged[name] for name in ("label", "index", "probabilities", "residual")] == [None] * 4
    assert diverged["iterations"] >= 1  # type: ignore[operator]
    assert calm["status"] == "converged"
    assert calm["label"] in ("calm", "wild")


def test_a_row_that_meets_its_deadline_is_answered_from_its_last_iterate(server: RunningServer) -> None:
    body = {"inputs": [[0, 1, 2, 3]] * 2, "tolerance": 1e-30, "max_iterations": [1000, 2], "deadline_ms": 20}
    slow, short = predictions(server.predict(body, "/models/slow/predict"))
    assert slow["status"] == "deadline"
    assert 1 <= slow["iterations"] < 1000  # type: ignore[operator]
    assert slow["label"] in ("no", "yes")
    assert slow["residual"] > 0  # type: ignore[operator]
    assert short["status"] == "max_iterations"


def test_a_deadline_that_leaves_no_row_an_iteration_is_504(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    answer = client.post("/predict", json={"inputs": digits.tolist(), "deadline_ms": 1e-6})
    assert answer.status_code == 504
    assert answer.json()["error"].startswith("deadline_ms: ")


def test_a_row_without_an_iteration_has_nulls_and_another_has_a_label(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    late, good = predictions(client.post("/predict", json={"inputs": digits[:2].tolist(), "deadline_ms": [1e-6, 60_000]}))
    assert late == {"label": None, "index": None, "probabilities": None, "iterations": 0, "residual": None, "status": "deadline"}
    assert good["status"] == "converged"


def test_probabilities_sum_to_one(client: httpx.Client, digits: NDArray[np.float64]) -> None:
    for row in predictions(client.post("/predict", json={"inputs": digits.tolist()})):
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-7)  # type: ignore[arg-type]


def test_the_request_id_is_echoed_or_made(client: httpx.Client) -> None:
    assert client.get("/v2/health/live", headers={"x-request-id": "my id 7"}).headers["x-request-id"] == "my id 7"
    made = {client.get("/v2/health/live").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    assert client.get("/nowhere", headers={"x-request-id": "lost"}).headers["x-request-id"] == "lost"
