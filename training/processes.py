"""Processes: a run on one process, or on several that torchrun starts and that learn from every batch together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import TrainingError


@dataclass(frozen=True)
class Processes:
    """This process, and how many there are.

    All of them hold the same weights, draw the same batches with the same augmentation, and take a part each; so the run is
    that of one process, to rounding, and whatever is computed from the weights is the same on each.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and shows progress."""
        return self.rank == 0

    def part(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return rows.tensor_split(self.count)[self.rank]

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over the processes, on each."""
        if self.count > 1:
            dist.all_reduce(numbers)
        return numbers

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Have backward passes average the gradients of a module's parameters over the processes."""
        return DistributedDataParallel(module) if self.count > 1 else module


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Join the other processes of torchrun, if it started this one: by NCCL on CUDA, by Gloo elsewhere."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """The device of this process: under torchrun, each has its own of a machine's CUDA devices.

    Raises:
        TrainingError: if there are fewer of them than processes, or one is named and all would share it.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    place, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device.index is not None:
        raise TrainingError(f"--device {device}: torchrun's processes cannot share one; name cuda, and each takes its own")
    if place >= found:
        raise TrainingError(f"torchrun --nproc-per-node: expected at most {found}, one process a CUDA device")
    torch.cuda.set_device(place)
    return torch.device("cuda", place)
