"""OnnxNetwork: an implicit network made of ONNX graphs, run by ONNX Runtime."""

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

    With these graphs, a network from any framework can be solved and served. They use standard operators and float32; inputs and
    outputs are named as in ``jfb.onnx.maps.MAPS``, and have shape ``[n, ...]`` with n free and the other sides fixed; rows are
    independent. Without ``initial_state.onnx`` the iteration starts at zeros shaped like the injection.

    It runs on the CPU, with as many threads as PyTorch has at construction. It has no parameters and no gradient.

    Args:
        folder: contains the graphs; its ``config.json`` is not read.
        config: its input shape and number of classes must be those of the graphs.

    Raises:
        CheckpointError: for a file that is missing, broken or rejected (``jfb.onnx.file.read``), has other inputs or outputs,
            does not fit the config or the other files, or computes other shapes than it declares.
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
        """Run the graphs once: a graph may compute other shapes than it declares, and that must fail here, not in a request."""
        try:
            for rows in (1, 3):
                injection = self.inject(torch.zeros(rows, *config.input.shape))
                self.readout(self.step(self.initial_state(injection), injection))
        except RuntimeError as error:
            raise CheckpointError(str(error)) from error

    def _compare_shapes(self, config: ModelConfig) -> None:
        """Check that the graphs that produce a tensor and those that consume it declare the same shape."""
        agreed: dict[str, Shape] = {"inputs": tuple(config.input.shape), "logits": (len(config.classes),)}
        agreed["injection"] = self._graphs["inject"].shapes["injection"]
        agreed["state"] = agreed["next_state"] = self._graphs["step"].shapes["state"]
        if "initial_state" not in self._graphs and agreed["state"] != agreed["injection"]:
            raise CheckpointError(
                f"{self._graphs['step'].path}: state: must have the injection's shape {_shown(agreed['injection'])}, because "
                f"there is no initial_state.onnx (got {_shown(agreed['state'])})"
            )
        for graph in self._graphs.values():
            for name, found in graph.shapes.items():
                if found != agreed[name]:
                    expected = f"{_shown(agreed[name])}, as elsewhere in the model"
                    raise CheckpointError(f"{graph.path}: {name}: must have shape {expected} (got {_shown(found)})")


class _Graph:
    """One file: a function of tensors, which PyTorch and ONNX Runtime share through NumPy without copies.

    ONNX Runtime's I/O binding is slower here: creating one costs half as much as a step of one row.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        self.path = path
        self.signature = signature
        try:
            model = read(path)
            self.shapes = _shapes(model, signature)
            self._session = new_session(model)
        except OnnxFileError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Run the graph.

        Raises:
            ValueError: for a tensor of another shape, type or device.
            RuntimeError: if the graph fails.
        """
        rows = arguments[0].shape[0]
        expected = (rows, *self.shapes[self.signature.output])
        given = zip(self.signature.inputs, arguments, strict=True)
        feed = {name: _array(name, argument, (rows, *self.shapes[name])) for name, argument in given}
        if not rows:
            return torch.empty(expected)  # ONNX Runtime does not allow a convolution of no rows
        try:
            result = torch.from_numpy(self._session.run([self.signature.output], feed)[0])
        except Exception as error:  # ONNX Runtime's exceptions have no common type
            raise RuntimeError(f"{self.path}: {error}") from error
        if result.shape != expected:
            raise RuntimeError(
                f"{self.path}: {self.signature.output}: must have shape {list(expected)} (got {list(result.shape)})"
            )
        return result


def new_session(model: ModelProto) -> onnxruntime.InferenceSession:
    """Make ONNX Runtime ready to run a model on the CPU, with as many threads as PyTorch has now.

    Raises:
        OnnxFileError: for a model that it rejects.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # these have no common type either
        raise OnnxFileError(f"ONNX Runtime rejects it: {error}") from error


def _shapes(model: ModelProto, signature: Signature) -> dict[str, Shape]:
    """The shape of a row of each input and output.

    Raises:
        OnnxFileError: for other names, types or free sides than ``signature`` has.
    """
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for kind, expected, values in (
        ("inputs", signature.inputs, inputs),
        ("outputs", (signature.output,), list(model.graph.output)),
    ):
        names = [value.name for value in values]
        if sorted(names) != sorted(expected):
            raise OnnxFileError(f"{kind}: must be {', '.join(expected)} (got {', '.join(names) or 'none'})")
    shapes: dict[str, Shape] = {}
    for value in (*inputs, *model.graph.output):
        found = shape(value)
        sides = () if found is None else tuple(side for side in found[1:] if side is not None and side > 0)
        if not found or found[0] is not None or len(sides) != len(found) - 1:
            raise OnnxFileError(f"{value.name}: must be a FLOAT tensor [n, ...] with n free and the other sides fixed")
        shapes[value.name] = sides
    return shapes


def _array(name: str, tensor: Tensor, expected: Shape) -> NDArray[np.float32]:
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32 or tensor.shape != expected:
        got = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        raise ValueError(f"{name}: must be torch.float32 {list(expected)} on cpu (got {got})")
    array: NDArray[np.float32] = tensor.detach().contiguous().numpy()
    return array


def _shown(expected: Shape) -> str:
    return f"[{', '.join(map(str, ('n', *expected)))}]"
