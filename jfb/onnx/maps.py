"""The maps of an implicit network as ONNX graphs: their names, and how PyTorch networks become them."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from onnx import ModelProto
from torch import Tensor, nn

from jfb.config import ResidualNorm
from jfb.network import ImplicitNetwork
from jfb.norms import residual
from jfb.onnx.file import OPSET, without_metadata


@dataclass(frozen=True)
class Signature:
    """What a graph's inputs and its one output are called; all are FLOAT with a free first dimension, the row."""

    inputs: tuple[str, ...]
    output: str


MAPS = {
    "inject": Signature(("inputs",), "injection"),
    "initial_state": Signature(("injection",), "state"),
    "step": Signature(("state", "injection"), "next_state"),
    "readout": Signature(("state",), "logits"),
}
"""The graphs that make a network, each in a file ``<name>.onnx``. ``initial_state`` may be absent: zeros like the injection."""

RESIDUAL = Signature(("state", "next_state"), "residual")


def trace(network: ImplicitNetwork, input_shape: Sequence[int], residual_norm: ResidualNorm) -> dict[str, ModelProto]:
    """Export each of ``MAPS``, and ``residual``, by PyTorch's own exporter.

    Args:
        network: float32, on the CPU, in evaluation mode.
        input_shape: of one raw input.
    """
    inputs = torch.zeros(2, *input_shape)  # two rows: the exporter takes a single one for a constant
    with torch.no_grad():
        injection = network.inject(inputs)
        state = network.initial_state(injection)
    return {
        "inject": _export(network, network.inject, MAPS["inject"], inputs),
        "initial_state": _export(network, network.initial_state, MAPS["initial_state"], injection),
        "step": _export(network, network.step, MAPS["step"], state, injection),
        "readout": _export(network, network.readout, MAPS["readout"], state),
        "residual": _export(network, lambda state, image: _residual(state, image, residual_norm), RESIDUAL, state, state),
    }


def _residual(previous: Tensor, current: Tensor, norm: ResidualNorm) -> Tensor:
    """``jfb.residual``, for runtimes whose maximum passes over NaN, as ONNX Runtime's does: a diverged row must not go on."""
    moved = residual(previous, current, norm)
    if norm is not ResidualNorm.CHANNEL_MAX:
        return moved
    return torch.where((current - previous).isnan().flatten(1).any(1), torch.nan, moved)


class _Map(nn.Module):
    """A module of one function, because the exporter takes nothing else."""

    def __init__(self, network: ImplicitNetwork, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.function = function
        self.eval()

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments)


def _export(network: ImplicitNetwork, function: Callable[..., Tensor], signature: Signature, *examples: Tensor) -> ModelProto:
    rows = torch.export.Dim("n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own parts
        program = torch.onnx.export(
            _Map(network, function),
            # Copies, because of one tensor given twice it makes one input, and calls the other unused.
            tuple(example.clone() for example in examples),
            dynamo=True,
            opset_version=OPSET,
            input_names=signature.inputs,
            output_names=[signature.output],
            dynamic_shapes=(tuple({0: rows} for _ in examples),),
            verbose=False,
        )
    assert program is not None
    return without_metadata(program.model_proto)
