"""Networks from outside, served: ONNX graphs and a config each, and no code."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from onnx import TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array

from tests.app.running import RunningServer
from tests.jfb.onnx.folders import foreign_folder, graph, solution

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def add_models(store: Path) -> None:
    """Folders of graphs for ``special_store``: affine, picky and a broken one."""
    foreign_folder(store / "affine" / "1")
    foreign_folder(store / "broken" / "1", step=b"\x08\x08garbage")
    # injection = 2 · TABLE[first entry of the row], and ONNX Runtime raises where there is no such entry
    picky = graph(
        "inject",
        [
            make_node("Gather", ["inputs", "zero"], ["first"], axis=1),
            make_node("Cast", ["first"], ["entry"], to=TensorProto.INT64),
            make_node("Gather", ["table", "entry"], ["data"], axis=0),
            make_node("Mul", ["data", "two"], ["injection"]),
        ],
        {"inputs": ["n", 3]},
        {"injection": ["n", 3]},
        two=2,
        table=TABLE,
    )
    picky.graph.initializer.append(from_array(np.array(0, dtype=np.int64), "zero"))
    foreign_folder(store / "picky" / "1", inject=picky)


def probabilities(inputs: np.ndarray) -> np.ndarray:
    logits = solution(inputs)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def test_a_folder_of_graphs_is_served_and_a_broken_one_in_the_same_store_is_rejected(special_server: RunningServer) -> None:
    inputs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    body = {"inputs": inputs.tolist(), "tolerance": 1e-6, "max_iterations": 200}
    answer = special_server.predict(body, "/models/affine/predict")
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    assert [row["status"] for row in rows] == ["converged"] * 5
    np.testing.assert_allclose([row["probabilities"] for row in rows], probabilities(inputs), atol=1e-5)
    assert special_server.predict({"inputs": inputs.tolist()}, "/models/broken/predict").status_code >= 400
    assert "step.onnx: not a readable ONNX file" in special_server.log.read_text()


def test_a_row_that_makes_the_model_raise_takes_down_only_its_own_request(special_server: RunningServer) -> None:
    engine = special_server.engine_pid()
    entries = [k % 4 if k % 5 else 99 for k in range(100)]
    bodies = [{"inputs": [[entry, 0, 0], [0, 0, 0]], "tolerance": 1e-6, "max_iterations": 200} for entry in entries]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: special_server.predict(body, "/models/picky/predict"), bodies))
    for entry, answer in zip(entries, answers, strict=True):
        if entry == 99:
            assert answer.status_code == 500
            assert answer.json()["error"].startswith("engine: these rows could not be computed: ")
        else:
            got = [row["probabilities"] for row in answer.json()["predictions"]]
            np.testing.assert_allclose(got, probabilities(TABLE[[entry, 0]]), atol=1e-4)
    assert special_server.engine_pid() == engine
    assert special_server.metric("jfb_engine_active_rows") == 0
