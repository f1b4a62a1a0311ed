"""The maps of an implicit network as ONNX graphs: their signatures, and their export from PyTorch networks."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from jfb.config import ResidualNorm
from jfb.network import ImplicitNetwork
from jfb.norms import residual
from jfb.onnx.file import OPSET, without_metadata
from jfb.solvers import Mixing


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
"""The graphs of a network, each in a file ``<name>.onnx``. Without ``initial_state`` the iteration starts at zeros."""

RESIDUAL = Signature(("state", "next_state"), "residual")


def trace(
    network: ImplicitNetwork, input_shape: Sequence[int], residual_norm: ResidualNorm, mixing: Mixing | None = None
) -> dict[str, ModelProto]:
    """Export each of ``MAPS``, ``residual``, and ``mix`` if there is a learned solver, with PyTorch's exporter.

    Args:
        network: float32, on the CPU, in evaluation mode.
        input_shape: shape of one raw input.
        mixing: the network's learned solver.
    """
    inputs = torch.zeros(2, *input_shape)  # two rows, because the exporter makes a single one a constant
    with torch.no_grad():
        injection = network.inject(inputs)
        state = network.initial_state(injection)
    maps = {
        "inject": _export(network, network.inject, MAPS["inject"], inputs),
        "initial_state": _export(network, network.initial_state, MAPS["initial_state"], injection),
        "step": _export(network, network.step, MAPS["step"], state, injection),
        "readout": _export(network, network.readout, MAPS["readout"], state),
        "residual": _export(
            network, lambda state, next_state: _residual(state, next_state, residual_norm), RESIDUAL, state, state
        ),
    }
    if mixing is not None:
        arguments = ("state", "next_state", "previous", "accepted", "allowed")
        allowed = torch.ones(len(state))
        maps["mix"] = _export_graph(
            network, mixing.advance, arguments, ("proposal", "next_allowed"), state, state, state, state, allowed
        )
    return maps


def _residual(previous: Tensor, current: Tensor, norm: ResidualNorm) -> Tensor:
    """``jfb.residual`` for runtimes whose maximum ignores NaN, such as ONNX Runtime: a diverged row must not go on."""
    moved = residual(previous, current, norm)
    if norm not in (ResidualNorm.CHANNEL_MAX, ResidualNorm.MAX):
        return moved
    return torch.where((current - previous).isnan().flatten(1).any(1), torch.nan, moved)


class _Map(nn.Module):
    """A module that wraps one function, because the exporter takes only modules."""

    def __init__(self, network: ImplicitNetwork, function: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self.function = function
        self.eval()

    def forward(self, *arguments: Tensor) -> Any:
        return self.function(*arguments)


def _export(network: ImplicitNetwork, function: Callable[..., Tensor], signature: Signature, *examples: Tensor) -> ModelProto:
    return _export_graph(network, function, signature.inputs, (signature.output,), *examples)


def _export_graph(
    network: ImplicitNetwork, function: Callable[..., Any], inputs: Sequence[str], outputs: Sequence[str], *examples: Tensor
) -> ModelProto:
    rows = torch.export.Dim("n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own modules
        program = torch.onnx.export(
            _Map(network, function),
            # Copies, because the exporter merges inputs that are the same tensor.
            tuple(example.clone() for example in examples),
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=(tuple({0: rows} for _ in examples),),
            verbose=False,
        )
    assert program is not None
    return without_metadata(program.model_proto)
