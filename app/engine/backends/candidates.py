"""The backends that a version may be computed by."""

from pathlib import Path

import torch

from app.engine.backends.backend import Backend, BFloat16Backend, OnnxBackend, TorchBackend
from app.engine.backends.tf32 import TF32Backend
from app.settings import BackendName
from jfb import Checkpoint, ImplicitNetwork
from jfb.checkpoint import ONNX


def candidates(found: Checkpoint, folder: Path, device: torch.device, wanted: BackendName) -> dict[str, Backend]:
    """Those to choose from for the version that was found in a folder, the reference first.

    ``torch`` is eager PyTorch, ``folded`` the same with fixed affine maps folded and channels last, ``onnx`` ONNX Runtime on the
    graphs in the folder (``python -m training export --parts``), ``compiled`` ``torch.compile`` of the folded step. ``auto`` is
    all that are ready at once: to compile takes tens of seconds, so that must be named. ``ValueError`` if what is wanted cannot
    compute the version.
    """
    if found.config.architecture.name == ONNX:
        if wanted not in ("auto", "torch", "onnx"):
            raise ValueError(f"backend: must be auto or onnx for a model of ONNX graphs (got {wanted})")
        return {"torch": OnnxBackend(folder, found.config)}
    backends: dict[str, Backend] = {"torch": TorchBackend(found.network, device)}
    if wanted in ("auto", "folded", "compiled"):
        name = "compiled" if wanted == "compiled" else "folded"
        backends[name] = TorchBackend(_channels_last(found.network.folded()), device, compiled=wanted == "compiled")
    if wanted == "onnx" or (wanted == "auto" and device.type == "cpu" and (folder / "step.onnx").exists()):
        if device.type != "cpu":
            raise ValueError(f"backend: onnx computes on the CPU only (got device {device})")
        backends["onnx"] = OnnxBackend(folder, found.config)
    return backends


def low_precision(found: Checkpoint, device: torch.device, *, captured: bool) -> dict[str, Backend]:
    """Compute steps in bfloat16, and in TF32 if the device can; none for a model of ONNX graphs, which are float32.

    Args:
        captured: whether steps will be captured in CUDA graphs; TF32 is for those alone.
    """
    if found.config.architecture.name == ONNX:
        return {}
    backends: dict[str, Backend] = {"bfloat16": BFloat16Backend(_channels_last(found.network.folded()), device)}
    if captured and TF32Backend.is_supported(device):
        backends["tf32"] = TF32Backend(_channels_last(found.network.folded()), device)
    return backends


def _channels_last(network: ImplicitNetwork) -> ImplicitNetwork:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
