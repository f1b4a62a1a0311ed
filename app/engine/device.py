"""Device: from its name to PyTorch's; ``python -m app.engine.device NAME ...`` fails with one line if one cannot be used here."""

import os
import sys

import torch

from app.settings import EngineConfig


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is CUDA if there is one, else the CPU. Ends the process for one that cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch that was built without it
        reason = str(error).splitlines()[0]
        sys.stderr.write(f"--device must be one that PyTorch can use here (got {name!r}): {reason}\n")
        raise SystemExit(2) from None


def set_up_torch(config: EngineConfig) -> None:
    """Set what holds for a whole process: threads, precision and kernels; before anything is computed."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default rounds convolutions to ten bits, and calls that float32
    if config.deterministic:
        use_deterministic_kernels()


def use_deterministic_kernels() -> None:
    """Have PyTorch take kernels that compute the same to the last bit each time; before anything is computed."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ["MKL_CBWR"] = "AUTO,STRICT"  # or products of small matrices depend on where in memory a row lies
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads any


if __name__ == "__main__":
    for name in sys.argv[1:]:
        choose_device(name)
