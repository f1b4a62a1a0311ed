"""OnnxNetwork: an implicit network that is three ONNX graphs, run by ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor

from jfb.config import ModelConfig
from jfb.network import ImplicitNetwork
from jfb.onnx.file import OnnxFileError, read, shape
from jfb.onnx.maps import MAPS, Signature
from jfb.store import CheckpointError

Shape = tuple[int, ...]


class OnnxNetwork(ImplicitNetwork):
    """The maps in ``inject.onnx``, ``step.onnx`` and ``readout.onnx`` of a folder, and in ``initial_state.onnx`` if there is one.

    So a network from any framework can be solved and served, if it can be written as these graphs: standard operators, float32,
    inputs and outputs named as in ``jfb.onnx.maps.MAPS``, each of shape ``[n, ...]`` with n free and the other sides fixed,
    and rows independent. Without ``initial_state.onnx`` the iteration starts at zeros shaped like the injection.

    It computes on the CPU, with as many threads as PyTorch has when it is built. It has no parameters, and no gradient
    passes through it.

    Args:
        folder: where the files are; ``config.json`` is not read.
        config: says what shape the inputs have and how many classes there are.

    Raises:
        CheckpointError: for a file that is missing, broken or refused (``jfb.onnx.file.read``), has other inputs or outputs than
            expected, does not fit the config or the other files, or does not compute what it announces.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        super().__init__()
        self._graphs = {
            name: _Graph(folder / f"{name}.onnx", signature)
            for name, signature in MAPS.items()
            if name != "initial_state" or (folder / "initial_state.onnx").exists()
        }
        self._compare_shapes(config)
        self._try(config)
        self.eval()

    def inject(self, inputs: Tensor) -> Tensor:
        return self._graphs["inject"](inputs)

    def initial_state(self, injection: Tensor) -> Tensor:
        if "initial_state" in self._graphs:
            return self._graphs["initial_state"](injection)
        return super().initial_state(injection)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return self._graphs["step"](state, injection)

    def readout(self, state: Tensor) -> Tensor:
        return self._graphs["readout"](state)

    def _try(self, config: ModelConfig) -> None:
        """What a graph announces and what it computes are two things; know it before a request does."""
        try:
            for rows in (1, 3):
                injection = self.inject(torch.zeros(rows, *config.input.shape))
                self.readout(self.step(self.initial_state(injection), injection))
        except RuntimeError as error:
            raise CheckpointError(str(error)) from error

    def _compare_shapes(self, config: ModelConfig) -> None:
        """Every tensor is announced by the graph that makes it and by those that take it: all must agree."""
        agreed: dict[str, Shape] = {"inputs": tuple(config.input.shape), "logits": (len(config.classes),)}
        agreed["injection"] = self._graphs["inject"].shapes["injection"]
        agreed["state"] = agreed["next_state"] = self._graphs["step"].shapes["state"]
        if "initial_state" not in self._graphs and agreed["state"] != agreed["injection"]:
            raise CheckpointError(
                f"{self._graphs['step'].path}: state: expected the injection's shape {_shown(agreed['injection'])}, because "
                f"there is no initial_state.onnx, got {_shown(agreed['state'])}"
            )
        for graph in self._graphs.values():
            for name, found in graph.shapes.items():
                if found != agreed[name]:
                    expected = f"{_shown(agreed[name])}, as elsewhere in the model"
                    raise CheckpointError(f"{graph.path}: {name}: expected shape {expected}, got {_shown(found)}")


class _Graph:
    """One file: a function of tensors, which PyTorch and ONNX Runtime hand each other through NumPy, without copies.

    ONNX Runtime's own bindings of memory are slower here: making one costs half as much as a step of one row.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        self.path = path
        self.signature = signature
        try:
            model = read(path)
            self.shapes = _shapes(model, signature)
            self._session = _session(model)
        except OnnxFileError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Compute. Raises ``ValueError`` for tensors that the graph does not take, ``RuntimeError`` if it fails."""
        rows = arguments[0].shape[0]
        expected = (rows, *self.shapes[self.signature.output])
        given = zip(self.signature.inputs, arguments, strict=True)
        feed = {name: _array(name, argument, (rows, *self.shapes[name])) for name, argument in given}
        if not rows:
            return torch.empty(expected)  # a convolution of no rows is an error to ONNX Runtime
        try:
            result = torch.from_numpy(self._session.run([self.signature.output], feed)[0])
        except Exception as error:  # the runtime's exceptions have no common type, and the graph may be anybody's
            raise RuntimeError(f"{self.path}: {error}") from error
        if result.shape != expected:
            raise RuntimeError(f"{self.path}: {self.signature.output}: expected shape {list(expected)}, got {list(result.shape)}")
        return result


def _shapes(model: ModelProto, signature: Signature) -> dict[str, Shape]:
    """The shape of a row of each input and output, or an error that says what was expected."""
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for kind, expected, values in (
        ("inputs", signature.inputs, inputs),
        ("outputs", (signature.output,), list(model.graph.output)),
    ):
        names = [value.name for value in values]
        if sorted(names) != sorted(expected):
            raise OnnxFileError(f"{kind}: expected {', '.join(expected)}, got {', '.join(names) or 'none'}")
    shapes: dict[str, Shape] = {}
    for value in (*inputs, *model.graph.output):
        found = shape(value)
        sides = () if found is None else tuple(side for side in found[1:] if side is not None and side > 0)
        if not found or found[0] is not None or len(sides) != len(found) - 1:
            raise OnnxFileError(f"{value.name}: expected a FLOAT tensor [n, ...] with n free and the other sides fixed")
        shapes[value.name] = sides
    return shapes


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what matters is raised
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # no common type here either
        raise OnnxFileError(f"ONNX Runtime refuses it: {error}") from error


def _array(name: str, tensor: Tensor, expected: Shape) -> NDArray[np.float32]:
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32 or tensor.shape != expected:
        got = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        raise ValueError(f"{name}: expected torch.float32 {list(expected)} on cpu, got {got}")
    array: NDArray[np.float32] = tensor.detach().contiguous().numpy()
    return array


def _shown(expected: Shape) -> str:
    return f"[{', '.join(map(str, ('n', *expected)))}]"
