"""The whole life of a row in one call, against ``jfb.predict`` and a closed form."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto
from onnx.helper import make_node

import jfb
from jfb import ResidualNorm
from jfb.onnx.one_row import OneRow
from jfb.solvers import Mixing
from tests.jfb.onnx.folders import MATRIX, foreign_folder, foreign_graphs, graph, solution

ROWS: list[object] = ["n", 3]
INPUTS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
MIXING = Mixing(torch.tensor([[1.4, 0.1, 0.0], [0.0, 1.4, 0.1], [0.1, 0.0, 1.4]]), torch.full((3,), 0.1), 0.8)


def test_the_logits_tend_to_the_closed_form() -> None:
    one_row = OneRow(foreign_graphs(), ResidualNorm.RELATIVE)
    for row in range(len(INPUTS)):
        lived = one_row(INPUTS[row : row + 1], 1e-6, 500)
        assert lived.converged
        assert lived.residual <= 1e-6
        np.testing.assert_allclose(lived.logits, solution(INPUTS[row : row + 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixing", [None, MIXING], ids=["picard", "mixing"])
@pytest.mark.parametrize("norm", list(ResidualNorm))
@pytest.mark.parametrize("starts_at_zeros", [True, False])
def test_every_count_residual_and_cap_is_that_of_predict(
    tmp_path: Path, norm: ResidualNorm, mixing: Mixing | None, starts_at_zeros: bool
) -> None:
    starts: dict[str, ModelProto] = {}
    if not starts_at_zeros:
        starts["initial_state"] = graph(
            "start", [make_node("Neg", ["injection"], ["state"])], {"injection": ROWS}, {"state": ROWS}
        )
    network = jfb.load(foreign_folder(tmp_path / "1", **starts)).network
    one_row = OneRow(foreign_graphs() | starts, norm, mixing)
    tolerance = torch.tensor([1e-1, 1e-3, 1e-5]).repeat(10)
    caps = torch.arange(30) % 20 + 1
    found = jfb.predict(
        network, torch.from_numpy(INPUTS), tolerance=tolerance, max_iterations=caps, residual_norm=norm, solver=mixing
    )
    lived = [one_row(INPUTS[row : row + 1], tolerance[row].item(), int(caps[row])) for row in range(30)]
    assert [one.iterations for one in lived] == found.solution.iterations.tolist()
    assert [one.converged for one in lived] == [status == "converged" for status in found.solution.status]
    assert [one.residual for one in lived] == pytest.approx(found.solution.residual.tolist(), rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(np.concatenate([one.logits for one in lived]), found.logits, rtol=1e-4, atol=1e-6)


def test_a_row_that_diverges_ends_at_once(tmp_path: Path) -> None:
    graphs = foreign_graphs()
    graphs["step"] = graph(
        "step", [make_node("Exp", ["state"], ["next_state"])], {"state": ROWS, "injection": ROWS}, {"next_state": ROWS}
    )
    found = jfb.predict(
        jfb.load(foreign_folder(tmp_path / "1", **graphs)).network,
        torch.from_numpy(INPUTS[:1]),
        tolerance=1e-6,
        max_iterations=500,
    )
    lived = OneRow(graphs, ResidualNorm.RELATIVE)(INPUTS[:1], 1e-6, 500)
    assert lived.iterations == found.solution.iterations.item() < 10
    assert not np.isfinite(lived.residual)
    assert not lived.converged


def test_the_inputs_of_a_graph_may_be_in_any_order() -> None:
    graphs = foreign_graphs()
    graphs["step"] = graph(
        "step",
        [make_node("MatMul", ["state", "At"], ["moved"]), make_node("Add", ["moved", "injection"], ["next_state"])],
        {"injection": ROWS, "state": ROWS},
        {"next_state": ROWS},
        At=MATRIX.T,
    )
    lived = OneRow(graphs, ResidualNorm.RELATIVE)(INPUTS[:1], 1e-6, 500)
    np.testing.assert_allclose(lived.logits, solution(INPUTS[:1]), rtol=1e-4, atol=1e-5)


def test_a_row_that_has_not_ended_goes_on_from_what_is_left_of_it() -> None:
    one_row = OneRow(foreign_graphs(), ResidualNorm.RELATIVE, MIXING)
    some, more = one_row(INPUTS[:1], 1e-6, 4), one_row(INPUTS[:1], 1e-6, 5)
    assert not some.converged
    rest = {name: torch.from_numpy(array) for name, array in some.rest.items()}
    point = rest["point"]
    next_state = point @ torch.from_numpy(MATRIX).T + rest["injection"]
    torch.testing.assert_close(next_state, -torch.from_numpy(more.logits))
    memory = {name: rest[name] for name in ("previous", "accepted", "allowed")}
    torch.testing.assert_close(MIXING.propose(memory, point, next_state), torch.from_numpy(more.rest["point"]))
    for name, tensor in memory.items():
        torch.testing.assert_close(tensor, torch.from_numpy(more.rest[name]))
