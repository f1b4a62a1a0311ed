"""A network from outside, served: three ONNX graphs and a config, and no code."""

from pathlib import Path

import numpy as np

from tests.app.running import running_server
from tests.jfb.onnx.folders import foreign_folder, solution


def test_a_folder_of_graphs_is_served_and_a_broken_one_in_the_same_store_is_rejected(tmp_path: Path) -> None:
    store = tmp_path / "store"
    foreign_folder(store / "affine" / "1")
    foreign_folder(store / "broken" / "1", step=b"\x08\x08garbage")
    inputs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with running_server(store, tmp_path / "log", default_model="affine", max_iterations_limit=1000) as server:
        server.wait_until_ready()
        answer = server.predict({"inputs": inputs.tolist(), "tolerance": 1e-6, "max_iterations": 200})
        assert answer.status_code == 200, answer.text
        rows = answer.json()["predictions"]
        assert [row["status"] for row in rows] == ["converged"] * 5
        logits = solution(inputs)
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose([row["probabilities"] for row in rows], expected, atol=1e-5)
        assert server.predict({"inputs": inputs.tolist()}, "/models/broken/predict").status_code >= 400
        assert "step.onnx: not a readable ONNX file" in server.log.read_text()
