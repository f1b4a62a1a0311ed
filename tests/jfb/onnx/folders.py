"""Folders of the model store whose networks are ONNX graphs, or become so."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from jfb import ImplicitNetwork, ModelConfig, checkpoint


def our_folder(
    folder: Path, network: ImplicitNetwork, architecture: str, shape: tuple[int, ...], norm: str, **arguments: object
) -> Path:
    """A version of one of the project's own architectures, ``<folder>/small/3``."""
    config = ModelConfig.model_validate(
        {
            "architecture": {"name": architecture, "arguments": arguments},
            "input": {"shape": shape, "kind": "image", "low": 0, "high": 1}
            if len(shape) == 3
            else {"shape": shape, "kind": "vector"},
            "classes": ["a", "b", "c"],
            "serving": {"tolerance": 0.01, "max_iterations": 80, "residual_norm": norm},
        }
    )
    version = folder / "small" / "3"
    version.mkdir(parents=True)
    checkpoint.save(version, config, network)
    (version / "metrics.json").write_text('{"accuracy": 0.875}')
    return version


MATRIX: NDArray[np.float32] = np.array([[0.5, 0.2, 0.0], [-0.2, 0.5, 0.1], [0.0, 0.1, 0.4]], dtype=np.float32)


def solution(inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the foreign network's logits tend to: ``u* = A u* + 2 d``, logits ``−u*``."""
    fixed: NDArray[np.float64] = np.linalg.solve(np.eye(3) - MATRIX.astype(np.float64), 2 * inputs.astype(np.float64).T).T
    return -fixed


def graph(
    name: str, nodes: list[onnx.NodeProto], inputs: dict[str, list[object]], output: dict[str, list[object]], **weights: object
) -> ModelProto:
    """A checked model with float32 inputs and outputs, written by ONNX's own helpers."""
    return make_model(
        make_graph(
            nodes,
            name,
            [make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in inputs.items()],
            [make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in output.items()],
            [from_array(np.asarray(value, dtype=np.float32), key) for key, value in weights.items()],
        ),
        opset_imports=[make_opsetid("", 17)],
        ir_version=8,
    )


def foreign_graphs() -> dict[str, ModelProto]:
    """A fixed-point network of no architecture of this project: ``u = A u + 2 d``, logits ``−u``, started at zero."""
    rows: list[object] = ["n", 3]
    return {
        "inject": graph(
            "inject", [make_node("Mul", ["inputs", "two"], ["injection"])], {"inputs": rows}, {"injection": rows}, two=2
        ),
        "step": graph(
            "step",
            [make_node("MatMul", ["state", "At"], ["moved"]), make_node("Add", ["moved", "injection"], ["next_state"])],
            {"state": rows, "injection": rows},
            {"next_state": rows},
            At=MATRIX.T,
        ),
        "readout": graph("readout", [make_node("Neg", ["state"], ["logits"])], {"state": rows}, {"logits": rows}),
    }


FOREIGN = ModelConfig.model_validate(
    {
        "architecture": {"name": "onnx"},
        "input": {"shape": [3], "kind": "vector"},
        "classes": ["x", "y", "z"],
        "serving": {"tolerance": 1e-5, "max_iterations": 200},
    }
)


def foreign_folder(folder: Path, **instead: ModelProto | bytes) -> Path:
    """A version folder with ``config.json`` and three graphs; ``instead`` replaces or adds graphs by name."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(FOREIGN.model_dump_json())
    for name, model in {**foreign_graphs(), **instead}.items():
        (folder / f"{name}.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return folder
