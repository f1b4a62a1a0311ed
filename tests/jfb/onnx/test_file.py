"""ONNX files that are broken, or meant to harm."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto
from onnx.helper import make_graph, make_node, make_tensor_value_info
from onnx.numpy_helper import from_array

from jfb.onnx.file import MAX_BYTES, OnnxFileError, read, write
from tests.jfb.onnx.folders import foreign_graphs, graph

ROWS: list[object] = ["n", 3]


def written(path: Path, model: ModelProto | bytes) -> Path:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def rejected(path: Path, match: str) -> None:
    with pytest.raises(OnnxFileError, match=match):
        read(path)


def test_a_good_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = foreign_graphs()["step"]
    write(tmp_path / "step.onnx", model)
    assert read(tmp_path / "step.onnx") == model
    assert list(tmp_path.iterdir()) == [tmp_path / "step.onnx"]


def test_what_is_no_regular_file_is_rejected_without_waiting_for_it(tmp_path: Path) -> None:
    rejected(tmp_path / "absent.onnx", "No such file")
    rejected(tmp_path, "must be a regular file")
    os.mkfifo(tmp_path / "pipe")
    rejected(tmp_path / "pipe", "must be a regular file")


def test_files_of_no_size_or_too_large_are_rejected_unread(tmp_path: Path) -> None:
    rejected(written(tmp_path / "empty", b""), r"must have 1 to 1,073,741,824 bytes \(got 0\)")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no disk
    rejected(tmp_path / "large", "got 1,073,741,825")


def test_a_model_too_large_to_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfb.onnx.file.MAX_BYTES", 100)
    with pytest.raises(OnnxFileError, match=r"must have at most 100 bytes \(got"):
        write(tmp_path / "step.onnx", foreign_graphs()["step"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"not a protobuf", b"\x00" * 64, b"\xff" * 64, np.random.default_rng(0).bytes(512), b"PK\x03\x04" + b"\x00" * 100]
)
def test_garbage_is_rejected(tmp_path: Path, content: bytes) -> None:
    rejected(written(tmp_path / "garbage", content), "not a")


def test_a_file_cut_short_anywhere_is_rejected(tmp_path: Path) -> None:
    whole = foreign_graphs()["step"].SerializeToString()
    for length in range(1, len(whole)):
        rejected(written(tmp_path / "cut", whole[:length]), ".")


def test_references_to_other_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(np.eye(3, dtype=np.float32).tobytes())
    for location in ("secret", "../secret", "/etc/passwd"):
        model = foreign_graphs()["step"]
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        rejected(written(tmp_path / "step", model), "tensor 'At': must have its data in the file")


def test_a_reference_inside_a_subgraph_is_found(tmp_path: Path) -> None:
    hidden = from_array(np.eye(3, dtype=np.float32), "hidden")
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="/etc/passwd")
    out = make_tensor_value_info("out", TensorProto.FLOAT, [3, 3])
    branch = make_graph([make_node("Constant", [], ["out"], value=hidden)], "branch", [], [out])
    nodes = [
        make_node("Constant", [], ["yes"], value=from_array(np.array(True))),
        make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch),
        make_node("MatMul", ["state", "chosen"], ["logits"]),
    ]
    rejected(written(tmp_path / "f", graph("f", nodes, {"state": ROWS}, {"logits": ROWS})), "tensor 'hidden'")


def test_operators_of_other_domains_functions_and_loops_are_rejected(tmp_path: Path) -> None:
    model = graph("f", [make_node("Gelu", ["state"], ["logits"], domain="com.microsoft")], {"state": ROWS}, {"logits": ROWS})
    model.opset_import.add(domain="com.microsoft", version=1)
    rejected(written(tmp_path / "domain", model), r"operator 'Gelu': must be a standard operator \(got domain 'com.microsoft'\)")

    model = foreign_graphs()["readout"]
    model.functions.append(onnx.helper.make_function("mine", "f", ["x"], ["y"], [make_node("Neg", ["x"], ["y"])], []))
    rejected(written(tmp_path / "function", model), "functions: must be inlined when exporting")

    endless = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        f (float[n,3] state) => (float[n,3] logits) {
            yes = Constant <value = bool {1}> ()
            logits = Loop ("", yes, state) <body = g (int64 i, bool go, float[n,3] u) => (bool again, float[n,3] v) {
                again = Identity (go)
                v = Neg (u)
            }>
        }""")
    rejected(written(tmp_path / "loop", endless), "operator 'Loop': not supported, because it may never end")


def test_an_operator_that_does_not_exist_is_rejected(tmp_path: Path) -> None:
    rejected(
        written(tmp_path / "f", graph("f", [make_node("Steal", ["state"], ["logits"])], {"state": ROWS}, {"logits": ROWS})),
        "not a valid ONNX model: .*Steal",
    )


def test_types_and_shapes_that_contradict_each_other_are_rejected(tmp_path: Path) -> None:
    model = graph("f", [make_node("MatMul", ["state", "w"], ["logits"])], {"state": ROWS}, {"logits": ROWS}, w=np.ones((4, 3)))
    rejected(written(tmp_path / "f", model), "not a valid ONNX model: .*[Ii]ncompatible dimensions")


def test_a_tensor_of_a_terabyte_is_rejected_before_anything_allocates_it(tmp_path: Path) -> None:
    nodes = [
        make_node("Constant", [], ["sides"], value=from_array(np.array([2**19, 2**19], dtype=np.int64))),
        make_node("ConstantOfShape", ["sides"], ["huge"]),
        make_node("ReduceSum", ["huge"], ["zero"], keepdims=0),
        make_node("Add", ["state", "zero"], ["logits"]),
    ]
    model = graph("f", nodes, {"state": ROWS}, {"logits": ROWS})
    rejected(
        written(tmp_path / "f", model), r"tensor 'huge': must have at most 268,435,456 entries per row \(got 274,877,906,944\)"
    )


FUZZ = """
import random, sys
from pathlib import Path
from jfb import CheckpointError
from jfb.onnx.file import OnnxFileError
from jfb.onnx.network import _Graph
from jfb.onnx.maps import MAPS
path, whole = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
random.seed(0)
rejected = 0
for _ in range(300):
    broken = bytearray(whole)
    for _ in range(random.choice((1, 1, 2, 8))):
        broken[random.randrange(len(broken))] = random.randrange(256)
    path.write_bytes(broken)
    try:
        _Graph(path, MAPS["step"])
    except CheckpointError:
        rejected += 1
assert rejected > 100, rejected
"""


@pytest.mark.slow
def test_damaged_bytes_end_in_an_error_or_in_a_network_but_never_in_a_crash(tmp_path: Path) -> None:
    write(tmp_path / "step.onnx", foreign_graphs()["step"])
    ran = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path / "broken.onnx"), str(tmp_path / "step.onnx")], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
