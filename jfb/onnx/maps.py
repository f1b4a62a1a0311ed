"""The maps of an implicit network as ONNX graphs: their signatures, and their export from PyTorch networks."""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from onnx import ModelProto
from torch import Tensor, nn

from jfb.network import ImplicitNetwork
from jfb.onnx.file import OPSET, without_metadata


@dataclass(frozen=True)
class Signature:
    """The names of a graph's inputs and its output; all are FLOAT, with the row in a free first dimension."""

    inputs: tuple[str, ...]
    output: str


MAPS = {
    "inject": Signature(("inputs",), "injection"),
    "initial_state": Signature(("injection",), "state"),
    "step": Signature(("state", "injection"), "next_state"),
    "readout": Signature(("state",), "logits"),
}
"""The graphs of a network, each in a file ``<name>.onnx``. Without ``initial_state``, which is
``ImplicitNetwork.first_state``, the iteration starts at zeros."""


def trace(network: ImplicitNetwork, input_shape: Sequence[int]) -> dict[str, ModelProto]:
    """Export each of ``MAPS`` with PyTorch's exporter.

    Args:
        network: float32, on the CPU, in evaluation mode.
        input_shape: shape of one raw input.
    """
    inputs = torch.zeros(2, *input_shape)  # two rows, because the exporter makes a single one a constant
    with torch.no_grad():
        injection = network.inject(inputs)
        state = network.first_state(injection)
    return {
        "inject": _export(network, network.inject, MAPS["inject"], inputs),
        "initial_state": _export(network, network.first_state, MAPS["initial_state"], injection),
        "step": _export(network, network.step, MAPS["step"], state, injection),
        "readout": _export(network, network.readout, MAPS["readout"], state),
    }


class _Map(nn.Module):
    """A module that wraps one function, because the exporter takes only modules."""

    def __init__(self, network: ImplicitNetwork, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.function = function
        self.eval()

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments)


def _export(network: ImplicitNetwork, function: Callable[..., Tensor], signature: Signature, *examples: Tensor) -> ModelProto:
    rows = torch.export.Dim("n")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that are not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own modules
        program = torch.onnx.export(
            _Map(network, function),
            # Copies, because the exporter merges inputs that are the same tensor.
            tuple(example.clone() for example in examples),
            dynamo=True,
            opset_version=OPSET,
            input_names=signature.inputs,
            output_names=(signature.output,),
            dynamic_shapes=(tuple({0: rows} for _ in examples),),
            verbose=False,
        )
    assert program is not None
    return without_metadata(program.model_proto)
