"""Engines that crash, and requests that make a model raise: which requests fail, and which do not."""

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array

from tests.app.running import RunningServer, running_server, wait_until
from tests.jfb.onnx.folders import foreign_folder, graph, solution


def test_an_engine_that_cannot_start_is_restarted_with_back_off_and_reported(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readiness_error(server: RunningServer) -> str:
        answer = server.client.get("/v2/health/ready")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        error: str = answer.json()["error"]
        return error

    # Something on this machine ends every engine at its start; it may pass by itself.
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'app.engine' in sys.orig_argv:\n    os._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with running_server(store, tmp_path / "log") as server:
        wait_until(lambda: re.search("[2-9] times in a row", readiness_error(server)) is not None, 60, "it has failed twice")
        assert re.search(r"exited \d times in a row \(status \d\) and is restarted in [\d.]+ s", readiness_error(server))
        assert server.metric("jfb_engine_consecutive_exits") >= 2
        assert server.metric("jfb_engine_ready") == 0
        assert server.client.get("/v2/health/live").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


def test_an_engine_that_is_killed_again_and_again_comes_back_each_time(store: Path, tmp_path: Path) -> None:
    with running_server(store, tmp_path / "log") as server:
        server.wait_until_ready()
        for kills in (1, 2):
            os.kill(server.engine_pid(), signal.SIGKILL)
            wait_until(lambda kills=kills: server.metric("jfb_engine_consecutive_exits") == kills, 10, "it is missed")  # type: ignore[misc]
            assert "SIGKILL" in server.client.get("/v2/health/ready").json()["error"]
            server.wait_until_ready()
        assert server.metric("jfb_engine_restarts_total") == 2


def test_a_row_that_makes_the_model_raise_takes_down_only_its_own_request(tmp_path: Path) -> None:
    # injection = 2 · table[first entry of the row], and ONNX Runtime raises where there is no such entry
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
        table=np.arange(12).reshape(4, 3),
    )
    picky.graph.initializer.append(from_array(np.array(0, dtype=np.int64), "zero"))
    foreign_folder(tmp_path / "store" / "picky" / "1", inject=picky)
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    with running_server(tmp_path / "store", tmp_path / "log", default_model="picky") as server, ThreadPoolExecutor(8) as pool:
        server.wait_until_ready()
        engine = server.engine_pid()
        entries = [k % 4 if k % 5 else 99 for k in range(100)]
        bodies = [{"inputs": [[entry, 0, 0], [0, 0, 0]], "tolerance": 1e-6, "max_iterations": 200} for entry in entries]
        answers = list(pool.map(server.predict, bodies))
        for entry, answer in zip(entries, answers, strict=True):
            if entry == 99:
                assert answer.status_code == 500
                assert answer.json()["error"].startswith("engine: these rows could not be computed: ")
            else:
                logits = solution(table[[entry, 0]])
                expected = np.exp(logits - logits.max(1, keepdims=True))
                expected /= expected.sum(1, keepdims=True)
                got = [row["probabilities"] for row in answer.json()["predictions"]]
                np.testing.assert_allclose(got, expected, atol=1e-4)
        assert server.engine_pid() == engine
        assert server.metric("jfb_engine_active_rows") == 0
