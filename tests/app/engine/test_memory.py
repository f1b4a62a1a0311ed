"""How many slots fit into the memory of a GPU, by a stand-in for CUDA."""

import pytest
import torch

from app.engine.memory import measured_slots, slots_that_fit

GIB = 2**30


@pytest.mark.parametrize(
    ("free_bytes", "bytes_per_slot", "slots"),
    [
        (16 * GIB, GIB, 8),
        (16 * GIB - 1, GIB, 4),
        (31 * GIB, GIB, 8),
        (80 * GIB, 40 * 2**20, 1024),
        (GIB, 3 * GIB, 1),
        (0, GIB, 1),
    ],
)
def test_slots_take_at_most_half_of_the_free_memory(free_bytes: int, bytes_per_slot: float, slots: int) -> None:
    assert slots_that_fit(free_bytes, bytes_per_slot) == slots


def test_what_a_slot_takes_is_measured_at_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 slots take 5 GiB for good and 8 at the peak, so one takes 1 GiB; of 40 GiB, PyTorch holds 20, and uses 7 of them."""
    allocated, peak = [2 * GIB], [3 * GIB]

    def reset(device: torch.device) -> None:
        peak[0] = allocated[0]

    def make(slots: int) -> None:
        assert slots == 8
        allocated[0] += 5 * GIB
        peak[0] = allocated[0] + 3 * GIB

    for name, value in {
        "reset_peak_memory_stats": reset,
        "memory_allocated": lambda device: allocated[0],
        "max_memory_allocated": lambda device: peak[0],
        "memory_reserved": lambda device: 20 * GIB,
        "mem_get_info": lambda device: (20 * GIB, 40 * GIB),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert measured_slots(make, torch.device("cuda")) == 16  # 33 GiB are free, half of which holds 16 slots
