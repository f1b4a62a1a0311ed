"""Memory: what one training step takes, by the number of iterations."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from jfb.architectures import build
from jfb.config import InputSpec
from jfb.gradients import Search
from training.recipe import Recipe

ITERATIONS = (1, 2, 5, 10, 20, 30, 40)


@dataclass(frozen=True)
class MemoryPoint:
    """The peak of steps with at most so many iterations."""

    gradient: str
    iterations: int
    bytes: int


def peak_memory(device: torch.device) -> int:
    """Bytes, since this process began: the peak of CUDA's allocator, or the peak resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # whose getrusage counts the process that this one was forked from, too
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(kilobytes)
    import resource  # here, because Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def memory_by_iterations(recipe: Recipe, spec: InputSpec, classes: int, device: torch.device) -> list[MemoryPoint]:
    """Take a step of the recipe's gradient and batch size with more and more iterations; call it in a fresh process.

    As a peak never falls, growth is seen as it happens. The inputs are noise of the right shape and range, and the tolerance is
    one that is hardly ever reached.
    """
    torch.manual_seed(0)
    network = build(recipe.network.name, spec.shape, classes, recipe.network.arguments).to(device).train()
    inputs = torch.rand(recipe.optimisation.batch_size, *spec.shape, device=device) * (spec.high or 1.0)
    labels = torch.randint(classes, (len(inputs),), device=device)
    gradient = recipe.gradient.build()
    found = []
    for iterations in ITERATIONS:
        search = Search(torch.finfo(torch.float32).tiny, iterations, recipe.search.residual_norm)
        for _ in range(3):  # allocators and libraries settle
            state, _ = gradient(network, network.inject(inputs), search)
            F.cross_entropy(network.readout(state), labels).backward()  # type: ignore[no-untyped-call]
            network.zero_grad()
        found.append(MemoryPoint(recipe.gradient.name, iterations, peak_memory(device)))
    return found
