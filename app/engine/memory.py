"""Memory of a GPU: how many slots fit into it."""

from collections.abc import Callable

import torch

MAX_SHARE = 0.5
"""Of the free memory, for one version: a graph needs its own, and a version that is replaced stays until its rows have ended."""
TRIED_SLOTS = 8


def slots_that_fit(free_bytes: int, bytes_per_slot: float) -> int:
    """The largest power of two of slots that take at most ``MAX_SHARE`` of the free memory, at least 1."""
    return 1 << max(0, int(MAX_SHARE * free_bytes / bytes_per_slot).bit_length() - 1)


def measured_slots(make: Callable[[int], object], device: torch.device) -> int:
    """How many slots fit on a GPU, from what a few take at most while ``make`` makes room for that many and tries them out."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    make(TRIED_SLOTS)
    used = torch.cuda.max_memory_allocated(device) - before
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # of what PyTorch holds
    return slots_that_fit(torch.cuda.mem_get_info(device)[0] + unused, used / TRIED_SLOTS)
