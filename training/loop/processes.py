"""Processes: data-parallel training, on one process or on several that torchrun starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """The rank of this process, and the number of processes.

    Every process holds the same weights, draws the same batches with the same augmentation, and takes its part of the rows; so
    the run is that of one process, to rounding, and what is computed from the weights is the same on each.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def part(self, rows: Tensor) -> Tensor:
        """Return this process's rows of a batch."""
        return rows.tensor_split(self.count)[self.rank]

    def total(self, numbers: Tensor) -> Tensor:
        """Return the sum over the processes, on each of them."""
        if self.count > 1:
            dist.all_reduce(numbers)
        return numbers

    def decide(self, choice: bool, device: torch.device) -> bool:
        """Return the choice of the first process: all must agree, and what they measure does not."""
        return bool(self.total(torch.tensor(float(choice and self.first), device=device)))

    def wait_for_all(self) -> None:
        """Block until every process has called this."""
        if self.count > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module whose backward passes average gradients over the processes."""
        return DistributedDataParallel(module) if self.count > 1 else module


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Join the process group of torchrun, if it started this process: NCCL on CUDA, Gloo elsewhere."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    if device.type == "cuda":  # with the device, so that no collective has to guess it
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
