"""One version of a model: config.json and model.safetensors to a network and back."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from jfb.architectures import build
from jfb.config import FORMAT_VERSION, ModelConfig
from jfb.network import ImplicitNetwork

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ONNX = "onnx"
"""The architecture of a folder whose maps are ONNX graphs (``jfb.onnx.network``), which has no ``model.safetensors``."""


class CheckpointError(Exception):
    """A model folder that cannot be served; the message says which file, what is wrong and what was expected."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: its config, and its network in evaluation mode."""

    config: ModelConfig
    network: ImplicitNetwork


def save(folder: Path, config: ModelConfig, network: ImplicitNetwork) -> None:
    """Write ``config.json`` and ``model.safetensors`` into a folder, which ``new_version`` makes visible as a whole."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format_version": str(FORMAT_VERSION)})
    (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")


def load(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a version's folder. Nothing in it is executed.

    Raises:
        CheckpointError: for a missing or truncated file, an unknown format version or architecture, arguments that the
            architecture refuses, and weights whose names, shapes or types are not the architecture's.
    """
    config = read_config(folder)
    if config.architecture.name == ONNX:
        return Checkpoint(config, _load_onnx(folder, config, torch.device(device)))
    try:
        # On the meta device a network has shapes but no memory, so a hostile config costs nothing before it is refused.
        with torch.device("meta"):
            network = build(config.architecture.name, config.input.shape, len(config.classes), config.architecture.arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    path = folder / WEIGHTS
    try:
        with safe_open(path, "pt") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        _compare(path, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, found)
        tensors = load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    for name, expected in network.state_dict().items():
        if tensors[name].dtype != expected.dtype:
            raise CheckpointError(f"{path}: {name}: expected dtype {expected.dtype}, got {tensors[name].dtype}")
    network.load_state_dict(tensors, assign=True)
    return Checkpoint(config, network.eval().requires_grad_(False))


def read_config(folder: Path) -> ModelConfig:
    """Read and validate ``config.json`` alone.

    Raises:
        CheckpointError: if it is missing, not JSON, of an unknown format version, or has a wrong field.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version: this program reads version {FORMAT_VERSION}, got {version!r}")
    try:
        return ModelConfig.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{path}: {problems}") from error


def _load_onnx(folder: Path, config: ModelConfig, device: torch.device) -> ImplicitNetwork:
    from jfb.onnx.network import OnnxNetwork  # here, because ONNX Runtime is not for everybody to import

    if config.architecture.arguments:
        raise CheckpointError(f"{folder / CONFIG}: architecture.arguments: onnx has none, got {config.architecture.arguments}")
    if device.type != "cpu":
        raise CheckpointError(f"{folder}: architecture.name: onnx is computed on the CPU, got device {device}")
    return OnnxNetwork(folder, config)


def _compare(path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of this architecture" for name in found if name not in expected]
    problems += [
        f"{name}: expected shape {list(shape)}, got {list(found[name])}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise CheckpointError(f"{path}: {'; '.join(problems[:5])}{more}")
