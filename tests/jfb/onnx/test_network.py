"""A network of no architecture of this project: three ONNX graphs and a config."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array

import jfb
from jfb import CheckpointError
from tests.jfb.onnx.folders import FOREIGN, MATRIX, foreign_folder, foreign_graphs, graph, solution

ROWS: list[object] = ["n", 3]


def test_a_folder_of_three_graphs_loads_and_solves_to_the_closed_form(tmp_path: Path) -> None:
    loaded = jfb.load(foreign_folder(tmp_path / "1"))
    inputs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * np.logspace(-3, 2, 50, dtype=np.float32)[:, None]
    found = jfb.predict(loaded.network, torch.from_numpy(inputs), tolerance=1e-6, max_iterations=500)
    assert set(found.solution.status) == {"converged"}
    np.testing.assert_allclose(found.logits, solution(inputs), rtol=1e-4, atol=1e-6)


def test_iterations_are_counted_as_for_the_same_map_in_pytorch(tmp_path: Path) -> None:
    loaded = jfb.load(foreign_folder(tmp_path / "1"))
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found = jfb.predict(loaded.network, inputs, tolerance=1e-3, max_iterations=torch.arange(20) + 1)
    state, count = torch.zeros(20, 3), torch.zeros(20, dtype=torch.int64)
    going = torch.ones(20, dtype=torch.bool)
    for k in range(1, 21):
        image = state @ torch.from_numpy(MATRIX).T + 2 * inputs
        count[going] = k
        going &= ((image - state).norm(dim=1) > 1e-3 * image.norm(dim=1)) & (k < torch.arange(20) + 1)
        state = image
    assert found.solution.iterations.tolist() == count.tolist()


def test_the_iteration_starts_where_initial_state_says(tmp_path: Path) -> None:
    start = graph("start", [make_node("Neg", ["injection"], ["state"])], {"injection": ROWS}, {"state": ROWS})
    network = jfb.load(foreign_folder(tmp_path / "1", initial_state=start)).network
    injection = network.inject(torch.ones(2, 3))
    assert network.initial_state(injection).tolist() == [[-2.0] * 3] * 2
    assert jfb.load(foreign_folder(tmp_path / "2")).network.initial_state(injection).tolist() == [[0.0] * 3] * 2


def test_no_rows_one_row_many_rows_and_rows_with_gaps_between_them_are_all_taken(tmp_path: Path) -> None:
    network = jfb.load(foreign_folder(tmp_path / "1")).network
    state, injection = torch.randn(3, 64, 3).unbind()[:2]
    together = network.step(state, injection)
    torch.testing.assert_close(together, state @ torch.from_numpy(MATRIX).T + injection)
    assert network.step(state[:0], injection[:0]).shape == (0, 3)
    torch.testing.assert_close(network.step(state[5:6], injection[5:6]), together[5:6])
    torch.testing.assert_close(network.step(state[::2], injection[::2]), together[::2])
    transposed = state.T.contiguous().T
    torch.testing.assert_close(network.step(transposed, injection), together)


def test_what_is_returned_is_not_overwritten_by_the_next_call(tmp_path: Path) -> None:
    network = jfb.load(foreign_folder(tmp_path / "1")).network
    first = network.inject(torch.ones(4, 3))
    network.inject(torch.zeros(4, 3))
    assert first.tolist() == [[2.0] * 3] * 4


def test_tensors_that_the_graph_does_not_take_are_named(tmp_path: Path) -> None:
    network = jfb.load(foreign_folder(tmp_path / "1")).network
    with pytest.raises(ValueError, match=r"inputs: must be torch.float32 \[2, 3\] on cpu \(got torch.float64 \[2, 3\] on cpu\)"):
        network.inject(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"injection: must be torch.float32 \[2, 3\] on cpu \(got torch.float32 \[2, 4\]"):
        network.step(torch.zeros(2, 3), torch.zeros(2, 4))


def test_step_rejects_an_injection_with_another_number_of_rows(tmp_path: Path) -> None:
    network = jfb.load(foreign_folder(tmp_path / "1")).network
    with pytest.raises(ValueError, match=r"injection: must be torch.float32 \[2, 3\] on cpu \(got torch.float32 \[3, 3\]"):
        network.step(torch.zeros(2, 3), torch.zeros(3, 3))


def test_other_devices_and_arguments_are_rejected(tmp_path: Path) -> None:
    folder = foreign_folder(tmp_path / "1")
    with pytest.raises(CheckpointError, match=r"device: must be cpu for the architecture onnx \(got meta\)"):
        jfb.load(folder, "meta")
    with_arguments = FOREIGN.model_dump_json().replace('"arguments":{}', '"arguments":{"width":3}')
    (folder / "config.json").write_text(with_arguments)
    with pytest.raises(CheckpointError, match=r"architecture.arguments: must be empty for onnx \(got \{'width': 3\}"):
        jfb.load(folder)


def renamed(name: str, old: str, new: str) -> ModelProto:
    model = foreign_graphs()[name]
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        node.input[:] = [new if each == old else each for each in node.input]
        node.output[:] = [new if each == old else each for each in node.output]
    return model


def of_type(kind: int) -> ModelProto:
    model = foreign_graphs()["readout"]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    return model


def negated(rows: list[object]) -> ModelProto:
    return graph("readout", [make_node("Neg", ["state"], ["logits"])], {"state": rows}, {"logits": rows})


EXPECTED = r"must be a FLOAT tensor \[n, ...\] with n free and the other sides fixed"


@pytest.mark.parametrize(
    ("part", "model", "message"),
    [
        ("inject", renamed("inject", "inputs", "x"), r"inputs: must be inputs \(got x\)"),
        ("step", renamed("step", "next_state", "state_2"), r"outputs: must be next_state \(got state_2\)"),
        ("readout", foreign_graphs()["inject"], r"inputs: must be state \(got inputs\)"),
        ("readout", of_type(TensorProto.DOUBLE), f"state: {EXPECTED}"),
        ("readout", of_type(TensorProto.FLOAT16), f"state: {EXPECTED}"),
        ("readout", negated([8, 3]), f"state: {EXPECTED}"),
        ("readout", negated(["n", "m"]), f"state: {EXPECTED}"),
        ("readout", negated([]), f"state: {EXPECTED}"),
        ("readout", negated(["n", 4]), r"state: must have shape \[n, 3\], as elsewhere in the model \(got \[n, 4\]\)"),
        ("inject", b"garbage", "not a readable ONNX file"),
        ("step", foreign_graphs()["step"].SerializeToString()[:-40], "not a"),
    ],
)
def test_a_part_that_does_not_fit_is_an_error_that_names_the_file(
    tmp_path: Path, part: str, model: ModelProto | bytes, message: str
) -> None:
    folder = foreign_folder(tmp_path / "1", **{part: model})
    with pytest.raises(CheckpointError, match=rf"{part}\.onnx: {message}"):
        jfb.load(folder)


def test_a_missing_part_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = foreign_folder(tmp_path / "1")
    (folder / "readout.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"readout\.onnx: No such file"):
        jfb.load(folder)


def test_a_graph_that_computes_another_shape_than_it_declares_is_found_when_loading(tmp_path: Path) -> None:
    """ONNX's checker cannot see it: the shape is computed."""
    nodes = [
        make_node("Shape", ["state"], ["shape"]),
        make_node("NonZero", ["shape"], ["places"]),  # [1, 2], which only running it shows
        make_node("Squeeze", ["places"], ["one"]),
        make_node("Gather", ["state", "one"], ["logits"], axis=1),  # two columns of three
    ]
    model = graph("readout", nodes, {"state": ROWS}, {"logits": ROWS})
    with pytest.raises(CheckpointError, match=r"readout\.onnx: logits: must have shape \[1, 3\] \(got \[1, 2\]\)"):
        jfb.load(foreign_folder(tmp_path / "1", readout=model))


def test_a_graph_that_fails_when_it_runs_is_found_when_loading(tmp_path: Path) -> None:
    nodes = [
        make_node("Constant", [], ["far"], value=from_array(np.array([7, 7, 7], dtype=np.int64))),
        make_node("Shape", ["state"], ["shape"]),
        make_node("Gather", ["shape", "far"], ["nothing"]),
        make_node("Reshape", ["state", "nothing"], ["logits"]),
    ]
    model = graph("readout", nodes, {"state": ROWS}, {"logits": ROWS})
    with pytest.raises(CheckpointError, match=r"readout\.onnx: "):
        jfb.load(foreign_folder(tmp_path / "1", readout=model))


def test_jfb_is_imported_without_onnx() -> None:
    code = "import sys, jfb; print([name for name in ('onnx', 'onnxruntime', 'onnxscript') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
