"""Export: write a version in the model store as ONNX."""

import json
from pathlib import Path

import onnx
from onnx import ModelProto

from jfb import __version__
from jfb.checkpoint import ONNX, load
from jfb.config import FORMAT_VERSION, ModelConfig
from jfb.network import ImplicitNetwork
from jfb.onnx.file import OnnxFileError, write
from jfb.onnx.loop import assemble
from jfb.onnx.maps import MAPS, trace
from jfb.store import CheckpointError, read_metrics

WHOLE = "model.onnx"


def export(folder: Path, *, parts: bool = False) -> list[Path]:
    """Write ``model.onnx`` into a version's folder: inject, solve and read out in one graph (``jfb.onnx.loop``).

    The graph uses learned mixing if that is the model's solver, else Picard iteration, whichever solver the model is served with.
    It takes a tolerance and a cap per row.

    Args:
        folder: ``model_store/<name>/<version>``.
        parts: also write each map: ``inject.onnx``, ``step.onnx``, ``readout.onnx`` and, if the iteration does not start at zeros
            shaped like the injection, ``initial_state.onnx``. A program that iterates itself needs these
            (``jfb.onnx.network.OnnxNetwork``).

    Returns:
        The written files.

    Raises:
        CheckpointError: for a folder that cannot be loaded, a version that is ONNX already, and a network too large for a file.
    """
    checkpoint = load(folder)
    config, network = checkpoint.config, checkpoint.network
    if config.architecture.name == ONNX:
        raise CheckpointError(f"{folder}: architecture.name: must not be onnx: this version is ONNX already")
    mixing = checkpoint.mixing if config.serving.solver == "mixing" else None
    maps = trace(network, config.input.shape)
    graphs = {WHOLE: assemble(maps, config.serving.residual_norm, mixing)}
    if parts:
        starts_at_zeros = network.learned_start is None and type(network).initial_state is ImplicitNetwork.initial_state
        graphs |= {f"{name}.onnx": maps[name] for name in MAPS if not (name == "initial_state" and starts_at_zeros)}
    facts = _facts(folder, config)
    for name, graph in graphs.items():
        _describe(graph, facts)
        try:
            write(folder / name, graph)
        except OnnxFileError as error:
            raise CheckpointError(f"{folder / name}: {error}") from error
    return [folder / name for name in graphs]


def _describe(model: ModelProto, facts: dict[str, str]) -> None:
    model.producer_name, model.producer_version = "jfb", __version__
    onnx.helper.set_model_props(model, facts)


def _facts(folder: Path, config: ModelConfig) -> dict[str, str]:
    """The facts of the model card, for readers of the file without the folder; structured values are JSON."""
    folder = folder.resolve()
    if folder.name.isdecimal():
        named = {"name": folder.parent.name, "version": folder.name}
    else:  # one that is being written has no number yet
        named = {"name": folder.parent.name if folder.name.startswith(".") else folder.name}
    facts = {
        "format_version": str(FORMAT_VERSION),
        **named,
        "architecture": config.architecture.name,
        "input": config.input.model_dump_json(),
        "classes": json.dumps(config.classes, ensure_ascii=False),
        "solver": "mixing" if config.serving.solver == "mixing" else "picard",
        "tolerance": str(config.serving.tolerance),
        "max_iterations": str(config.serving.max_iterations),
        "residual_norm": config.serving.residual_norm.value,
    }
    metrics = read_metrics(folder)
    if metrics is not None and "accuracy" in metrics:
        facts["accuracy"] = str(metrics["accuracy"])
    return facts
