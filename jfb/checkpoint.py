"""The format of model_store/: one folder a version, config.json and model.safetensors in it."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from jfb.architectures import build
from jfb.model_config import FORMAT_VERSION, ModelConfig
from jfb.network import ImplicitNetwork

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ONNX = "onnx"
"""The architecture of a folder whose maps are ONNX graphs (``jfb.onnx_network``), which has no ``model.safetensors``."""


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


def versions(model: Path) -> list[int]:
    """The versions in a model's folder, ascending. Folders whose names are not positive integers are not versions."""
    if not model.is_dir():
        return []
    return sorted(
        int(path.name) for path in model.iterdir() if path.name.isdecimal() and path.name == str(int(path.name)) and path.is_dir()
    )


def models(store: Path) -> dict[str, list[int]]:
    """The models in a store that have a version, each with its versions, in alphabetical order."""
    if not store.is_dir():
        return {}
    found = {path.name: versions(path) for path in sorted(store.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    return {name: numbers for name, numbers in found.items() if numbers}


class NewVersion:
    """A version while it is written; see ``new_version``."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._hidden: Path | None = None
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The version's folder, ``store/<name>/<version>``, once the block has ended; the number is drawn only then.

        Raises:
            RuntimeError: before that, and after a block that raised.
        """
        if self._folder is None:
            raise RuntimeError(f"no version of {self._model} was finished")
        return self._folder

    def __enter__(self) -> Path:
        self._model.mkdir(parents=True, exist_ok=True)
        self._hidden = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=self._model))
        return self._hidden

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._hidden is not None
        try:
            if kind is None:
                self._folder = self._publish(self._hidden)
        finally:
            shutil.rmtree(self._hidden, ignore_errors=True)

    def _publish(self, hidden: Path) -> Path:
        for path in (*hidden.rglob("*"), hidden):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors and mkdtemp let the owner alone read
            _sync(path)
        while True:
            target = self._model / str(max(versions(self._model), default=0) + 1)
            try:
                hidden.rename(target)
                break
            except OSError:
                if not target.exists():  # otherwise another training run took the number first
                    raise
        _sync(self._model)
        return target


def new_version(store: Path, name: str) -> NewVersion:
    """Fill a hidden folder, then rename it to the next version: a half-written version is never visible.

    A context manager whose ``with`` gives the hidden folder. If the block raises, the folder is removed and the store is as it
    was. The folder's files are on disk before its name is. Which version it became, the manager's ``folder`` says
    afterwards: the highest one may by then be another run's.
    """
    return NewVersion(store / name)


def _load_onnx(folder: Path, config: ModelConfig, device: torch.device) -> ImplicitNetwork:
    from jfb.onnx_network import OnnxNetwork  # here, because ONNX Runtime is not for everybody to import

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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
