"""Sessions over HTTP: inputs that change slowly take fewer iterations, and get the same answers."""

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.app.running import rejected


def film(frames: int) -> NDArray[np.float64]:
    """Pictures of the digits model, each a little different from the one before."""
    rng = np.random.default_rng(3)
    first, last = rng.uniform(0, 16, (2, 1, 1, 8, 8))
    return np.stack([first + (last - first) * 0.01 * k for k in range(frames)])


def predict(client: httpx.Client, picture: NDArray[np.float64], **more: object) -> dict[str, object]:
    answer = client.post("/predict", json={"inputs": picture.tolist(), "tolerance": 1e-5, "max_iterations": 200, **more})
    assert answer.status_code == 200, answer.text
    prediction: dict[str, object] = answer.json()["predictions"][0]
    return prediction


def test_a_session_takes_fewer_iterations_to_the_same_answers(client: httpx.Client) -> None:
    cold = [predict(client, picture) for picture in film(10)]
    warm = [predict(client, picture, session="film") for picture in film(10)]
    for one, other in zip(cold, warm, strict=True):
        assert other["status"] == "converged"
        assert other["residual"] <= 1e-5  # type: ignore[operator]
        assert other["label"] == one["label"]
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-3)
    iterations = [[row["iterations"] for row in rows] for rows in (cold, warm)]
    assert iterations[1][0] == iterations[0][0]
    assert sum(iterations[1][1:]) < 0.8 * sum(iterations[0][1:])  # type: ignore[arg-type]


def test_the_same_picture_again_takes_one_iteration(client: httpx.Client) -> None:
    picture = film(1)[0]
    assert predict(client, picture, session="still")["iterations"] > 5  # type: ignore[operator]
    assert predict(client, picture, session="still")["iterations"] == 1
    assert predict(client, picture, session="another")["iterations"] > 5  # type: ignore[operator]


def test_a_session_may_stand_in_the_query_string(client: httpx.Client) -> None:
    body = {"inputs": film(1)[0].tolist(), "tolerance": 1e-5}
    again = [client.post("/predict?session=12", json=body).json()["predictions"][0]["iterations"] for _ in range(2)]
    assert again[0] > 1 == again[1]


def test_a_session_is_a_parameter_of_the_open_inference_protocol_too(client: httpx.Client) -> None:
    picture = film(1)[0]
    inputs = [{"name": "inputs", "shape": list(picture.shape), "datatype": "FP32", "data": picture.ravel().tolist()}]

    def iterations(session: object) -> int:
        body = {"inputs": inputs, "parameters": {"tolerance": 1e-5, "max_iterations": 200, "session": session}}
        (count,) = (
            output["data"][0]
            for output in client.post("/v2/models/digits/infer", json=body).json()["outputs"]
            if output["name"] == "iterations"
        )
        assert isinstance(count, int)
        return count

    assert iterations("v2") > 5
    assert iterations("v2") == 1
    body = {"inputs": inputs, "parameters": {"session": "x" * 129}}
    rejected(client.post("/v2/models/digits/infer", json=body), 400, "session: ", "1 to 128 characters")


@pytest.mark.parametrize("session", ["", "x" * 129, 7, ["a"], True])
def test_a_session_that_is_no_short_text_is_rejected(client: httpx.Client, session: object) -> None:
    body = {"inputs": film(1)[0].tolist(), "session": session}
    rejected(client.post("/predict", json=body), 422, "session: ", "1 to 128 characters")
