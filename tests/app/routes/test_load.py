"""Many clients at once: the answers are the same as alone, no work is wasted, and a dead engine is no disaster."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import torch

import jfb
from tests.app.running import RunningServer, running_server, wait_until

INPUTS = np.random.default_rng(5).integers(0, 17, size=(192, 1, 8, 8)).astype(np.float32)


def test_64_clients_with_mixed_tolerances_get_what_jfb_predict_computes_and_no_row_iterates_for_another(
    server: RunningServer, store: Path
) -> None:
    tolerances = np.where(np.arange(len(INPUTS)) % 2, 1e-1, 1e-4)

    def work(name: str) -> float:
        return server.metric(f"jfb_engine_{name}_total", model="digits", version="2")

    async def one_client(client: httpx.AsyncClient, rows: np.ndarray) -> list[dict[str, object]]:
        answers: list[dict[str, object]] = []
        for row in rows:
            body = {"inputs": [INPUTS[row].tolist()], "tolerance": tolerances[row], "max_iterations": 200}
            answer = await client.post("/predict", json=body)
            assert answer.status_code == 200, answer.text
            answers += answer.json()["predictions"]
        return answers

    async def all_clients() -> list[dict[str, object]]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            parts = await asyncio.gather(*(one_client(client, rows) for rows in np.split(np.arange(len(INPUTS)), 64)))
        return [answer for part in parts for answer in part]

    before = work("step_evaluations"), work("iterations")
    answers = asyncio.run(all_clients())
    evaluations, iterations = work("step_evaluations") - before[0], work("iterations") - before[1]

    checkpoint = jfb.load(store / "digits" / "2")
    offline = jfb.predict(checkpoint.network, torch.tensor(INPUTS), tolerance=torch.tensor(tolerances), max_iterations=200)
    probabilities = offline.logits.double().softmax(1)
    np.testing.assert_allclose([answer["probabilities"] for answer in answers], probabilities, atol=1e-5)  # type: ignore[misc]
    assert [answer["index"] for answer in answers] == probabilities.argmax(1).tolist()
    assert [answer["status"] for answer in answers] == offline.solution.status
    counts = np.array([answer["iterations"] for answer in answers])
    difference = np.abs(counts - offline.solution.iterations.numpy())  # one at most, where rounding falls on the threshold
    assert difference.max() <= 1
    assert difference.sum() <= 1
    assert counts[tolerances == 1e-4].min() > counts[tolerances == 1e-1].max()
    assert evaluations == iterations == counts.sum()


def test_an_engine_killed_under_load_costs_503s_at_most_and_is_back_and_right_within_15_seconds_each_time(
    store: Path, tmp_path: Path
) -> None:
    with running_server(store, tmp_path / "log", default_model="digits") as server:
        server.wait_until_ready()
        body = {"inputs": INPUTS[:16].tolist(), "tolerance": 1e-5}
        right = server.predict(body).json()
        stop = threading.Event()
        answers: list[httpx.Response] = []
        failures: list[Exception] = []

        def hammer() -> None:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                while not stop.is_set():
                    try:
                        answers.append(client.post("/predict", json=body))
                    except httpx.HTTPError as error:
                        failures.append(error)
                    time.sleep(0.01 if answers and answers[-1].status_code == 200 else 0.1)

        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(answers) > 20, 30, "there is load")
            os.kill(server.engine_pid(), signal.SIGKILL)
            wait_until(lambda: any(answer.status_code == 503 for answer in answers), 10, "the engine is missed")
            assert_missed(server, exits=1)
            server.wait_until_ready(15)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert {answer.status_code for answer in answers} == {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
        again = server.predict(body).json()
        for row, expected in zip(again["predictions"], right["predictions"], strict=True):
            assert (row["label"], row["iterations"], row["status"]) == tuple(
                expected[name] for name in ("label", "iterations", "status")
            )
        assert server.metric("jfb_engine_restarts_total") == 1
        os.kill(server.engine_pid(), signal.SIGKILL)
        assert_missed(server, exits=2)
        server.wait_until_ready(15)
        assert server.metric("jfb_engine_restarts_total") == 2


def assert_missed(server: RunningServer, exits: int) -> None:
    """The server says what became of its engine, and how often in a row."""
    wait_until(lambda: server.metric("jfb_engine_consecutive_exits") == exits, 10, "it is missed")
    assert "SIGKILL" in server.client.get("/v2/health/ready").json()["error"]
