"""Device: from the name that a user gives to the device that this process computes on."""

import os
import time
from contextlib import AbstractContextManager, nullcontext

import torch

from jfb import mixed_precision
from training.errors import TrainingError


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if this machine has it, else the CPU.

    Raises:
        TrainingError: for a name that torch does not know, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"--device must be one that PyTorch can use here (got {name!r}): {error}") from error
    return device


def process_device(device: torch.device) -> torch.device:
    """Return the device of this process: under torchrun, each process has a CUDA device of its own.

    Raises:
        TrainingError: if there are fewer devices than processes, or if one device is named for all of them.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    local_rank, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device.index is not None:
        raise TrainingError(f"--device must be cuda under torchrun, which gives each process its own device (got {device})")
    if local_rank >= devices:
        raise TrainingError(f"torchrun --nproc-per-node must be at most {devices}, the number of CUDA devices")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def now(device: torch.device) -> float:
    """Return the time in seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def tensor_float_32(device: torch.device) -> AbstractContextManager[None]:
    """Let a GPU round the float32 factors of convolutions and matrix products to TF32, which is several times faster.

    For learning only: scores and evaluation are in full float32, as in the server. Has no effect on other devices.
    """
    return mixed_precision.tensor_float_32() if device.type == "cuda" else nullcontext()
