"""Monotone operator networks, served: each splitting by the same engine, over a real socket, as ``jfb.predict`` answers."""

from pathlib import Path

import numpy as np
import pytest
import torch

import jfb
from jfb import ModelConfig, checkpoint
from jfb.monotone_network import MonotoneNetwork
from jfb.solvers import SOLVERS
from jfb.store import new_version
from tests.app.running import RunningServer
from tests.app.store import network_of

SPLITTINGS = ["forward_backward", "peaceman_rachford"]


def config(solver: str, kind: str) -> ModelConfig:
    architecture, given = {
        "mlp": (
            {"name": "monotone_mlp", "arguments": {"width": 16, "monotonicity": 0.5}},
            {"shape": [6], "kind": "vector"},
        ),
        "conv": (
            {"name": "monotone_conv", "arguments": {"mean": 8.0, "std": 8.0, "channels": [6], "pool": [2]}},
            {"shape": [1, 8, 8], "kind": "image", "low": 0, "high": 16},
        ),
    }[kind]
    return ModelConfig.model_validate(
        {
            "architecture": architecture,
            "input": given,
            "classes": ["a", "b", "c"],
            "serving": {"solver": solver, "tolerance": 1e-3, "max_iterations": 300},
        }
    )


def add_models(store: Path) -> None:
    """Four monotone networks for ``special_store``: dense and convolutional, each with both splittings."""
    for kind in ("mlp", "conv"):
        for solver in SPLITTINGS:
            described = config(solver, kind)
            network = network_of(described, seed=1)
            assert isinstance(network, MonotoneNetwork)
            with torch.no_grad():
                network.A.mul_(2)
                network.B.mul_(4)
            network.constrain()
            with new_version(store, f"{kind}_{solver}") as folder:
                checkpoint.save(folder, described, network)


@pytest.mark.parametrize("solver", SPLITTINGS)
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_each_splitting_is_served_as_predict_computes_it(
    special_server: RunningServer, special_store: Path, solver: str, kind: str
) -> None:
    name = f"{kind}_{solver}"
    loaded = jfb.load(special_store / name / "1")
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0, 16, (17, *loaded.config.input.shape)) * rng.choice(
        [0.1, 1.0], (17, *[1] * len(loaded.config.input.shape))
    )
    tolerance = np.resize([1e-1, 1e-5, 1e-3], 17)
    caps = np.resize([300, 300, 300, 3], 17)
    answer = special_server.predict(
        {"inputs": inputs.tolist(), "tolerance": tolerance.tolist(), "max_iterations": caps.tolist()}, f"/models/{name}/predict"
    )
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    offline = jfb.predict(
        loaded.network,
        torch.tensor(inputs, dtype=torch.float32),
        tolerance=torch.tensor(tolerance),
        max_iterations=torch.tensor(caps),
        solver=SOLVERS[solver](),
    )
    assert len(set(offline.solution.iterations.tolist())) > 4, "rows that all take equally long would prove nothing"
    assert [row["status"] for row in rows] == offline.solution.status
    assert [row["iterations"] for row in rows] == offline.solution.iterations.tolist()
    probabilities = offline.logits.double().softmax(1)
    assert [row["index"] for row in rows] == probabilities.argmax(1).tolist()
    np.testing.assert_allclose([row["probabilities"] for row in rows], probabilities, atol=1e-5)


def test_the_description_of_a_model_names_its_splitting(special_server: RunningServer) -> None:
    for solver in SPLITTINGS:
        assert special_server.client.get(f"/models/mlp_{solver}").json()["solver"] == solver


def test_a_session_starts_where_it_ended_under_each_splitting(special_server: RunningServer) -> None:
    """The dual variable of Peaceman-Rachford is not remembered: it is found again from the remembered state."""
    for solver in SPLITTINGS:
        body = {"inputs": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], "tolerance": 1e-4, "session": "film"}
        first, second = (special_server.predict(body, f"/models/mlp_{solver}/predict").json()["predictions"][0] for _ in range(2))
        assert first["iterations"] > 3
        assert second["iterations"] == 1
        assert second["label"] == first["label"]
