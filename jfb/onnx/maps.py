"""The maps of an implicit network as ONNX graphs: their signatures, and their export from PyTorch networks."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from onnx import ModelProto, NodeProto, TensorShapeProto, ValueInfoProto
from onnx.utils import Extractor
from torch import Tensor, nn

from jfb.network import ImplicitNetwork
from jfb.onnx.file import OPSET, messages, without_metadata


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

    The maps are exported together, as one function of unrelated arguments, and then separated: the exporter spends most of its
    time on preparations that do not depend on what it exports.

    Args:
        network: float32, on the CPU, in evaluation mode.
        input_shape: shape of one raw input.
    """
    inputs = torch.zeros(2, *input_shape)  # two rows, because the exporter makes a single one a constant
    with torch.no_grad():
        injection = network.inject(inputs)
        state = network.first_state(injection)
    examples = {"inputs": inputs, "injection": injection, "state": state}
    arguments = [(name, argument) for name, signature in MAPS.items() for argument in signature.inputs]
    rows = {name: torch.export.Dim(f"rows_of_{name}") for name in MAPS}  # with one for all, the maps would share its computation
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that are not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own modules
        program = torch.onnx.export(
            _Maps(network),
            # Copies, because the exporter merges inputs that are the same tensor.
            tuple(examples[argument].clone() for _, argument in arguments),
            dynamo=True,
            opset_version=OPSET,
            input_names=[f"{name}.{argument}" for name, argument in arguments],
            output_names=[f"{name}.{signature.output}" for name, signature in MAPS.items()],
            dynamic_shapes=tuple({0: rows[name]} for name, _ in arguments),
            verbose=False,
        )
    assert program is not None
    maps = Extractor(program.model_proto)
    return {name: _part(maps, name, signature) for name, signature in MAPS.items()}


class _Maps(nn.Module):
    """``MAPS``, one after the other, as a module, because the exporter takes only modules."""

    def __init__(self, network: ImplicitNetwork) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, inputs: Tensor, start: Tensor, state: Tensor, injection: Tensor, fixed_point: Tensor) -> tuple[Tensor, ...]:
        of = self.network
        return of.inject(inputs), of.first_state(start), of.step(state, injection), of.readout(fixed_point)


def _part(maps: Extractor, name: str, signature: Signature) -> ModelProto:
    """Separate one of ``MAPS`` from the others."""
    short = {f"{name}.{argument}": argument for argument in (*signature.inputs, signature.output)}
    model: ModelProto = maps.extract_model(list(short)[:-1], list(short)[-1:])
    model.graph.name = name
    for message in messages(model):
        if isinstance(message, NodeProto):
            message.input[:] = [short.get(value, value) for value in message.input]
            message.output[:] = [short.get(value, value) for value in message.output]
        elif isinstance(message, ValueInfoProto):
            message.name = short.get(message.name, message.name)
        elif isinstance(message, TensorShapeProto.Dimension) and message.dim_param:
            message.dim_param = message.dim_param.replace(f"rows_of_{name}", "n")
    return without_metadata(model)
