"""Memory: peak memory of a training step, by the number of iterations."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from jfb import fixed_point
from jfb.config import InputSpec
from jfb.gradients import Search
from training.loop.network import build_network
from training.recipe import Recipe

ITERATIONS = (1, 2, 5, 10, 20, 30, 40)


@dataclass(frozen=True)
class MemoryPoint:
    """Peak memory of a step with a number of iterations."""

    gradient: str
    iterations: int
    bytes: int


def peak_memory(device: torch.device) -> int:
    """Return the peak in bytes since this process started: of CUDA's allocator, or of the resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # whose getrusage includes the process that this one was forked from
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(kilobytes)
    import resource  # imported here, because Windows does not have it

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def memory_by_iterations(recipe: Recipe, spec: InputSpec, classes: int, device: torch.device) -> list[MemoryPoint]:
    """Measure peak memory of steps with more and more iterations; call it in a fresh process.

    The number of iterations grows because a peak never falls. The inputs are noise of the right shape and range, and the
    tolerance is practically never reached.
    """
    network = build_network(recipe, spec, classes, device).train()
    inputs = torch.rand(recipe.optimisation.batch_size, *spec.shape, device=device) * (spec.high or 1.0)
    labels = torch.randint(classes, (len(inputs),), device=device)
    gradient = recipe.gradient.build()
    points = []
    for iterations in ITERATIONS:
        search = Search(torch.finfo(torch.float32).tiny, iterations, recipe.search.residual_norm)
        for _ in range(3):  # warm-up of allocators and libraries
            state, _ = fixed_point(network, injection=network.inject(inputs), gradient=gradient, **vars(search))
            F.cross_entropy(network.readout(state), labels).backward()  # type: ignore[no-untyped-call]
            network.zero_grad()
        points.append(MemoryPoint(recipe.gradient.name, iterations, peak_memory(device)))
    return points
