"""The main job: a model is trained and served by the commands, and gets requests over a real socket."""

import asyncio
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from rich.console import Console

import jfb
from tests.app.running import RunningServer
from training.data import read
from training.data.sources import DIGITS
from training.recipe import DataRecipe

README = Path(__file__).resolve().parents[1] / "README.md"
ROWS = 200
TOLERANCES = [1e-1, 1e-2, 1e-3, 1e-4] * (ROWS // 4)


@pytest.fixture
def server(digits_server: RunningServer) -> RunningServer:
    return digits_server


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, Any]:
    return read(DataRecipe(source=DIGITS), ["train"], Console(quiet=True)).splits["train"].inputs[:ROWS].numpy()


@pytest.fixture(scope="module")
def checkpoint(digits_store: Path) -> jfb.Checkpoint:
    return jfb.load(digits_store / "digits" / "1")


@pytest.fixture(scope="module")
def offline(checkpoint: jfb.Checkpoint, images: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """What the loaded model computes, in the form of the server's answers."""
    found = checkpoint.predict(images, tolerance=torch.tensor(TOLERANCES), max_iterations=100)
    return [
        {"label": checkpoint.config.classes[row.argmax()], "probabilities": row.tolist(), "iterations": k, "status": status}
        for row, k, status in zip(
            found.logits.double().softmax(1), found.solution.iterations.tolist(), found.solution.status, strict=True
        )
    ]


def assert_same(answers: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [a["label"] for a in answers] == [e["label"] for e in expected]
    assert [a["status"] for a in answers] == [e["status"] for e in expected]
    off = np.abs(np.array([a["iterations"] for a in answers]) - [e["iterations"] for e in expected])
    assert off.max() <= 1
    assert (off > 0).sum() <= 1, "more than a rounding that falls on the very threshold"
    apart = np.abs(np.array([a["probabilities"] for a in answers]) - np.array([e["probabilities"] for e in expected]))
    # Where a count differs by one, the probabilities are those of another iterate.
    assert apart[off == 0].max() <= 1e-5


def test_200_images_are_answered_the_same_alone_in_one_request_and_among_64_clients(
    server: RunningServer, images: np.ndarray[Any, Any], offline: list[dict[str, Any]]
) -> None:
    assert len({answer["iterations"] for answer in offline}) > 4, "rows that are all alike would prove nothing"
    bodies = [
        {"inputs": [image.tolist()], "tolerance": tolerance, "max_iterations": 100}
        for image, tolerance in zip(images, TOLERANCES, strict=True)
    ]
    evaluations = server.metric("jfb_engine_step_evaluations_total", model="digits")

    alone = [server.predict(body).json()["predictions"][0] for body in bodies]
    assert_same(alone, offline)

    whole = server.predict({"inputs": images.tolist(), "tolerance": TOLERANCES, "max_iterations": 100})
    assert_same(whole.json()["predictions"], offline)

    async def crowd() -> list[dict[str, Any]]:
        clients = asyncio.Semaphore(64)
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:

            async def predict(body: dict[str, Any]) -> dict[str, Any]:
                async with clients:
                    answer = (await client.post("/predict", json=body)).json()["predictions"][0]
                    assert isinstance(answer, dict)
                    return answer

            return await asyncio.gather(*map(predict, bodies))

    among_others = asyncio.run(crowd())
    assert_same(among_others, offline)

    # No row iterates for another: the step evaluations are the sum of the reported iterations.
    reported = sum(a["iterations"] for a in (*alone, *whole.json()["predictions"], *among_others))
    assert server.metric("jfb_engine_step_evaluations_total", model="digits") - evaluations == reported


def test_tighter_means_more_iterations_a_smaller_residual_and_nearer_to_the_limit(
    server: RunningServer, images: np.ndarray[Any, Any], checkpoint: jfb.Checkpoint, digits_store: Path
) -> None:
    exact = jfb.load(digits_store / "digits" / "1").network.double()
    limit = jfb.predict(exact, torch.from_numpy(images).double(), tolerance=1e-10, max_iterations=5000)
    assert set(limit.solution.status) == {"converged"}
    expected = limit.logits.softmax(1).numpy()
    previous: tuple[float, float, float] | None = None
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        answers = server.predict({"inputs": images.tolist(), "tolerance": tolerance}).json()["predictions"]
        assert all(a["status"] == "converged" and a["residual"] <= tolerance for a in answers)
        iterations = float(np.mean([a["iterations"] for a in answers]))
        residual = float(np.mean([a["residual"] for a in answers]))
        distance = float(np.abs(np.array([a["probabilities"] for a in answers]) - expected).mean())
        if previous is not None:
            assert iterations > previous[0]
            assert residual < previous[1]
            assert distance < previous[2]
        previous = iterations, residual, distance


def test_a_cap_of_one_is_one_iteration(server: RunningServer, images: np.ndarray[Any, Any]) -> None:
    answers = server.predict({"inputs": images.tolist(), "tolerance": 1e-6, "max_iterations": 1}).json()["predictions"]
    assert {(a["iterations"], a["status"]) for a in answers} == {(1, "max_iterations")}


def test_the_curl_line_of_the_readme_gets_the_answer_of_the_readme(server: RunningServer) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)
    command = next(body for kind, body in blocks if kind == "sh" and body.startswith("curl http://127.0.0.1:8000/models/digits/"))
    shown = json.loads(next(body for kind, body in blocks if kind == "json"))
    words = shlex.split(command.replace("http://127.0.0.1:8000", server.url))
    answer = json.loads(subprocess.run([*words, "--silent", "--fail"], check=True, capture_output=True, timeout=30).stdout)
    assert answer.keys() == shown.keys()
    assert (answer["model"], answer["version"]) == (shown["model"], shown["version"])
    (row,), (shown_row,) = answer["predictions"], shown["predictions"]
    assert row.keys() == shown_row.keys()
    for field in ("label", "index", "status"):
        assert row[field] == shown_row[field]
    # Another machine's training ends at slightly different weights.
    assert abs(row["iterations"] - shown_row["iterations"]) <= 2
    np.testing.assert_allclose(row["probabilities"], shown_row["probabilities"], atol=0.1)


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
