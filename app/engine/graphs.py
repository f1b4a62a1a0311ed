"""CUDA graphs: many kernels launched as one; and copies to the host that it need not wait for."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import structlog
import torch
from torch import Tensor

from app.settings import EngineConfig

WARM_UPS = 3
"""Runs before a capture, in which libraries select kernels and allocate memory."""

Run = Callable[[], None]
Capture = Callable[[Run], Run]
"""Makes what does the same as a function that computes static tensors from static tensors; it may run the function."""

log = structlog.get_logger(__name__)


def eager(run: Run) -> Run:
    """Capture nothing."""
    return run


def why_not_captured(folder: Path, device: torch.device, config: EngineConfig) -> str:
    """Why the iterations of the version in a folder must not be captured, found out by ``capture_trial``; empty if they may."""
    command = [sys.executable, "-m", "app.engine.capture_trial", str(folder), str(device)]
    seconds = config.load_seconds / 2
    try:
        tried = subprocess.run(command, input=config.model_dump_json(), text=True, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"the trial took more than {seconds:g} s"
    if tried.returncode == 0:
        return ""
    return (tried.stderr.strip().splitlines() or [f"the trial ended with status {tried.returncode}"])[-1]


class CudaGraphs:
    """Captures functions as CUDA graphs that share memory, so one of them may run at a time; those of another object may, too.

    After a capture that fails, nothing is captured any more, and everything runs eagerly.

    Attributes:
        failure: of a capture; None while there was none.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # cuBLAS has a workspace for each stream, which graphs keep, and warm-ups on the same stream would write to.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self.failure: str | None = None

    def __call__(self, run: Run) -> Run:
        if self.failure is not None:
            return run
        try:
            return self._captured(run)
        except Exception as error:
            torch.cuda.synchronize(self._device)  # raises if the device is lost
            self.failure = f"{type(error).__name__}: {error}"
            log.warning("capture failed, computing eagerly", error=self.failure)
            return run

    def _captured(self, run: Run) -> Run:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):  # for the capture, too: after one that fails, PyTorch does not leave the stream
            for _ in range(WARM_UPS):
                run()
            # thread_local, because while this thread loads a model, the engine's main thread computes others.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                run()
        current.wait_stream(self._stream)
        return graph.replay


def host_buffer(like: Tensor) -> Tensor:
    """Memory on the host that a tensor is filled from; the tensor itself where the device is the host."""
    return torch.empty_like(like, device="cpu", pin_memory=True) if like.is_cuda else like


class HostCopy:
    """A tensor on the host, as it was at ``start``: pinned memory, copied behind an event. On a CPU, the tensor itself."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._copy = tensor, host_buffer(tensor)
        self._copied = torch.cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Begin to copy, once the device has computed the tensor."""
        if self._copied is not None:
            self._copy.copy_(self._tensor, non_blocking=True)
            self._copied.record(torch.cuda.current_stream(self._tensor.device))

    def wait(self) -> Tensor:
        """The last copy, once it is complete."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._copy
