"""Checkpoints: ``config.json``, ``model.safetensors`` and ``solver.safetensors`` to a network, its solvers and back."""

import os
import threading
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import safetensors.torch
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook

from jfb.architectures import build
from jfb.config import FORMAT_VERSION, ModelConfig, ResidualNorm, must_be_one_of
from jfb.label_stop import LabelStop
from jfb.learned_start import LearnedStart
from jfb.network import ImplicitNetwork
from jfb.prediction import Prediction, predict
from jfb.solvers import SOLVERS, Mixing, Solver, check_solver, solvers_for
from jfb.store import (
    CONFIG,
    SOLVER,
    WEIGHTS,
    CheckpointError,
    list_models,
    list_versions,
    read_config,
    read_file,
    write_config,
)

ONNX = "onnx"
"""The architecture of a folder whose maps are ONNX graphs (``jfb.onnx.network``); it has no ``model.safetensors``."""
MAX_PARAMETERS = 2**28
"""Of a network, buffers included."""
MAX_TENSORS = 4096
"""Of a network's parameters and buffers."""
MAX_WEIGHTS_BYTES = 2**30 + 2**20
"""Of a file of weights: as many float32 numbers as ``MAX_PARAMETERS``, and their header."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: its config, its network in evaluation mode, and the learned solver that was fitted to it, if any."""

    config: ModelConfig
    network: ImplicitNetwork
    mixing: Mixing | None = None

    @property
    def solvers(self) -> dict[str, Solver]:
        """The solvers that can solve the network, by name; the model's default first."""
        return solvers_of(self.network, self.config, self.mixing)

    @property
    def solver(self) -> Solver:
        """The model's default solver."""
        return self.solvers[self.config.serving.solver]

    def predict(
        self,
        inputs: Tensor | ArrayLike,
        *,
        tolerance: float | Tensor | None = None,
        max_iterations: int | Tensor | None = None,
        residual_norm: ResidualNorm | None = None,
        solver: str | Solver | None = None,
        label_stop: LabelStop | None = None,
    ) -> Prediction:
        """Predict with the model's own defaults, which are in ``config.serving``: the same results as the server's.

        Args:
            inputs: raw values, shape ``[n, *config.input.shape]``, of any type: a tensor, or an array or list that becomes one.
            solver: one of ``solvers``, or its name.

        The other arguments replace a default; they are those of ``jfb.predict``.

        Raises:
            ValueError: for inputs of another shape, an unknown solver, and as ``jfb.predict``.
        """
        serving, weights = self.config.serving, next(self.network.parameters(), torch.empty(0))
        inputs = torch.as_tensor(inputs, dtype=weights.dtype, device=weights.device)
        if not inputs.dim() or inputs.shape[1:] != self.config.input.shape:
            expected = ", ".join(map(str, ("n", *self.config.input.shape)))
            raise ValueError(f"inputs: must have shape [{expected}] (got {list(inputs.shape)})")
        if isinstance(solver, str) and solver not in self.solvers:
            raise ValueError(f"solver: {must_be_one_of(self.solvers, solver)}")
        return predict(
            self.network,
            inputs,
            tolerance=serving.tolerance if tolerance is None else tolerance,
            max_iterations=serving.max_iterations if max_iterations is None else max_iterations,
            residual_norm=residual_norm or serving.residual_norm,
            solver=self.solvers[solver] if isinstance(solver, str) else solver or self.solver,
            label_stop=label_stop,
        )


def solvers_of(network: ImplicitNetwork, config: ModelConfig, mixing: Mixing | None) -> dict[str, Solver]:
    """The solvers that can solve a network, by name; its default first, the learned one among them if there is one."""
    found: dict[str, Solver] = {name: SOLVERS[name]() for name in solvers_for(type(network))}
    if mixing is not None:
        found["mixing"] = mixing
    return {config.serving.solver: found[config.serving.solver], **found}


def save(folder: str | Path, config: ModelConfig, network: ImplicitNetwork, mixing: Mixing | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors`` into a folder, which ``jfb.store.new_version`` makes visible as a whole.

    Args:
        folder: created if it does not exist.
        mixing: written to ``solver.safetensors`` if given.

    Raises:
        CheckpointError: for what ``load`` would refuse, before anything is written: an architecture that is not known
            (``jfb.register``), arguments that do not build this network, a solver that cannot solve it, a learned one that
            is not given or does not fit.
    """
    folder = Path(folder)
    if config.architecture.name == ONNX:
        raise CheckpointError(f"{folder}: a network of ONNX graphs has no weights to save: copy its folder instead")
    built = _build(folder, config)
    if type(built).__qualname__ != type(network).__qualname__:  # a notebook may have defined its class again
        raise CheckpointError(
            f"{folder / CONFIG}: architecture.name: must name the network's class, {type(network).__name__} "
            f"(got {config.architecture.name!r}, which is {type(built).__name__})"
        )
    _check_solver(folder, config, network)
    weights = network.state_dict()
    _compare_weights(folder / WEIGHTS, built, weights)
    if mixing is None and SOLVERS[config.serving.solver].learned:
        raise CheckpointError(
            f"{folder / CONFIG}: serving.solver: must come with its coefficients (got {config.serving.solver!r})"
        )
    if network.learned_start is not None:
        _check_learned_start(folder, config, deepcopy(network).eval())  # because inject may update statistics in training
    if mixing is not None:
        _check_mixing(folder / SOLVER, config, network, mixing)
    folder.mkdir(parents=True, exist_ok=True)
    if mixing is not None:
        save_mixing(folder, mixing)
    _write_tensors(folder / WEIGHTS, weights)
    write_config(folder, config)


def save_mixing(folder: Path, mixing: Mixing) -> None:
    """Write ``solver.safetensors`` into a folder."""
    _write_tensors(folder / SOLVER, mixing.tensors, solver="mixing")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(safetensors.torch.save(content, {"format_version": str(FORMAT_VERSION), **metadata}))


def find_folder(model: str | Path, store: Path | None = None) -> Path:
    """Find the folder of a version.

    Args:
        model: a string is a name in the store, for its highest version; ``name/version``; or the path of a version's folder.
            A ``Path`` is a folder, which is returned as it is.
        store: the one that ``JFB_MODEL_STORE`` names, or else ``model_store``, by default.

    Raises:
        CheckpointError: if there is no such version.
        TypeError: if ``model`` is neither a string nor a path.
    """
    if isinstance(model, Path):
        return model
    if not isinstance(model, str):
        raise TypeError(f"model: must be a name, name/version, or the folder of a version (got {type(model).__name__})")
    store = store or Path(os.environ.get("JFB_MODEL_STORE") or "model_store")
    for folder in (store / model, Path(model)):
        if (folder / CONFIG).is_file():
            return folder
    if found := list_versions(store / model):
        return store / model / str(found[-1])
    name, _, number = model.rpartition("/")
    if name and (versions := list_versions(store / name)):
        raise CheckpointError(f"model {name} has no version {number} (available: {', '.join(map(str, versions))})")
    known = list_models(store)
    missing = "which has no models" if store.is_dir() else "which is not a folder"
    nearest = get_close_matches(model, known, n=1)
    raise CheckpointError(
        f"no model {model!r}: must be a name in {store} ({', '.join(known) or missing}), name/version, or the folder of "
        f"a version{f'; did you mean {nearest[0]!r}?' if nearest else ''}"
    )


def load(model: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a model. Nothing in its folder is executed.

    Args:
        model: a string is a name in the store ``model_store``, or in the one that ``JFB_MODEL_STORE`` names, for its highest
            version; ``name/version``; or the path of a version's folder. A ``Path`` is a folder.

    Raises:
        CheckpointError: for a model that does not exist, a missing or truncated file, an unknown format version or
            architecture, arguments that the architecture rejects, a solver that cannot solve it, weights whose names, shapes
            or types are not the architecture's, and a learned solver that is missing or does not fit the network.
        TypeError: if ``model`` is neither a string nor a path.
    """
    folder = find_folder(model)
    config = read_config(folder)
    if config.architecture.name == ONNX:
        network = _load_onnx(folder, config, torch.device(device))
        _check_solver(folder, config, network)
        return Checkpoint(config, network, _load_mixing(folder, config, network, device))
    network = _build(folder, config)
    _check_solver(folder, config, network)
    path = folder / WEIGHTS
    tensors = _read_tensors(path)
    _compare_weights(path, network, tensors)
    network.load_state_dict({name: tensor.to(device) for name, tensor in tensors.items()}, assign=True)
    network.eval().requires_grad_(False)
    if network.learned_start is not None:
        _check_learned_start(folder, config, network)
    return Checkpoint(config, network, _load_mixing(folder, config, network, device))


def _build(folder: Path, config: ModelConfig) -> ImplicitNetwork:
    """Build a network on the meta device, where it has shapes but no memory, and stop as soon as it is too large."""
    builder, tensors, numbers = threading.get_ident(), 0, 0

    def count(_: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, numbers
        if tensor is None or threading.get_ident() != builder:
            return
        tensors, numbers = tensors + 1, numbers + tensor.numel()
        if tensors > MAX_TENSORS:
            raise ValueError(f"architecture.arguments: must give at most {MAX_TENSORS} tensors of weights (got more)")
        if numbers > MAX_PARAMETERS:
            raise ValueError(f"architecture.arguments: must give at most {MAX_PARAMETERS} parameters (got more)")

    hooks = [
        register(count) for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook)
    ]
    try:
        with torch.device("meta"):
            network = build(config.architecture.name, config.input.shape, len(config.classes), config.architecture.arguments)
            if config.learned_start is not None:
                network.learned_start = LearnedStart(**dict(config.learned_start))
            return network
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file: copies, because a mapping of the file would end the process if that were truncated."""
    content = read_file(path, MAX_WEIGHTS_BYTES)
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # for a type that PyTorch does not have, it is no SafetensorError
        raise CheckpointError(f"{path}: not a readable safetensors file: {error!r}") from error


@torch.no_grad()
def _load_mixing(folder: Path, config: ModelConfig, network: ImplicitNetwork, device: torch.device | str) -> Mixing | None:
    """Read ``solver.safetensors``; None for a version that has no such file and needs none."""
    path = folder / SOLVER
    if not path.exists() and not SOLVERS[config.serving.solver].learned:
        return None
    state = network.initial_state(network.inject(torch.zeros(1, *config.input.shape, device=device)))
    channels = state.shape[1]
    tensors = _read_tensors(path)
    _compare(path, {"matrix": (channels, channels), "momentum": (channels,), "rate": ()}, tensors, whole="solver")
    try:
        return Mixing.from_tensors({name: tensor.to(device) for name, tensor in tensors.items()})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


@torch.no_grad()
def _check_mixing(path: Path, config: ModelConfig, network: ImplicitNetwork, mixing: Mixing) -> None:
    network = deepcopy(network).eval()  # because inject may update statistics in training
    injection = network.inject(next(network.parameters()).new_zeros(1, *config.input.shape))
    try:
        mixing.check_state(network.initial_state(injection))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


@torch.no_grad()
def _check_learned_start(folder: Path, config: ModelConfig, network: ImplicitNetwork) -> None:
    injection = network.inject(next(network.parameters()).new_zeros(1, *config.input.shape))
    expected = [list(tensor.shape[1:]) for tensor in (injection, network.initial_state(injection))]
    assert network.learned_start is not None
    found = [list(network.learned_start.injection_shape), list(network.learned_start.state_shape)]
    if found != expected:
        raise CheckpointError(
            f"{folder / CONFIG}: learned_start: injection_shape and state_shape must be the network's, {expected[0]} and "
            f"{expected[1]} (got {found[0]} and {found[1]})"
        )


def _check_solver(folder: Path, config: ModelConfig, network: ImplicitNetwork) -> None:
    try:
        check_solver(config.serving.solver, config.architecture.name, type(network))
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: serving.{error}") from error


def _load_onnx(folder: Path, config: ModelConfig, device: torch.device) -> ImplicitNetwork:
    from jfb.onnx.network import OnnxNetwork  # here, because other models need no ONNX Runtime

    if config.architecture.arguments:
        raise CheckpointError(
            f"{folder / CONFIG}: architecture.arguments: must be empty for onnx (got {config.architecture.arguments})"
        )
    if config.learned_start is not None:
        raise CheckpointError(f"{folder / CONFIG}: learned_start: must not be given for onnx, whose start is initial_state.onnx")
    if device.type != "cpu":
        raise CheckpointError(f"{folder}: device: must be cpu for the architecture onnx (got {device})")
    return OnnxNetwork(folder, config)


def _compare_weights(path: Path, network: ImplicitNetwork, tensors: Mapping[str, Tensor]) -> None:
    expected = network.state_dict()
    _compare(path, {name: tuple(tensor.shape) for name, tensor in expected.items()}, tensors)
    for name, tensor in expected.items():
        if tensors[name].dtype != tensor.dtype:
            raise CheckpointError(f"{path}: {name}: must have dtype {tensor.dtype} (got {tensors[name].dtype})")


def _compare(
    path: Path, expected: dict[str, tuple[int, ...]], tensors: Mapping[str, Tensor], whole: str = "architecture"
) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of this {whole}" for name in found if name not in expected]
    problems += [
        f"{name}: must have shape {list(shape)} (got {list(found[name])})"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise CheckpointError(f"{path}: {'; '.join(problems[:5])}{more}")
