"""Placement: keep data on the device if it fits, and read it ahead from the host's memory if not."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from training.data.sources import Split
from training.data.splits import Data

Batch = TypeVar("Batch")

MAX_FRACTION = 0.25
"""Of a device's free memory that the data may take; the rest is for the network, its activations and the optimiser."""


def place(data: Data, device: torch.device, free_bytes: int) -> Data:
    """Return the data with its inputs and labels on a device if they fit there, and unchanged if not.

    Args:
        free_bytes: of the device, see ``free_memory``.
    """
    parts = [data.train, data.validation, data.test, *data.curriculum]
    if not fits(sum(part.inputs.nbytes + part.labels.nbytes for part in parts), free_bytes):
        return data
    train, validation, test, *curriculum = (
        Split(part.inputs.to(device), part.labels.to(device), part.difficulty) for part in parts
    )
    return replace(data, train=train, validation=validation, test=test, curriculum=tuple(curriculum))


def fits(data_bytes: int, free_bytes: int) -> bool:
    """Return whether data takes at most ``MAX_FRACTION`` of the free memory."""
    return data_bytes <= MAX_FRACTION * free_bytes


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device with memory of its own; 0 for the host, where data is already."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def load_batches(part: Split, batches: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the inputs and labels of each batch on a device.

    From the host to a GPU they are copied in the background, through pinned memory, while the GPU learns from the batch before.

    Args:
        batches: the rows of each.
    """
    if device.type != "cuda" or part.inputs.is_cuda:
        for rows in batches:
            yield part.inputs[rows].to(device), part.labels[rows].to(device)
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(rows: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event]:
        with torch.cuda.stream(copies):  # in this thread, which would otherwise use the first GPU
            inputs, labels = (column[rows].pin_memory().to(device, non_blocking=True) for column in (part.inputs, part.labels))
            return inputs, labels, copies.record_event()

    for inputs, labels, copied in read_ahead(copy, batches):
        learning = torch.cuda.current_stream(device)
        learning.wait_event(copied)
        for column in (inputs, labels):  # their memory must not be used again before the batch has been learned from
            column.record_stream(learning)
        yield inputs, labels


def read_ahead(read: Callable[[Tensor], Batch], batches: Sequence[Tensor]) -> Iterator[Batch]:
    """Yield ``read`` of each batch in order; a thread reads the next one meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="read_ahead") as reader:
        upcoming: deque[Future[Batch]] = deque()
        for rows in batches:
            upcoming.append(reader.submit(read, rows))
            if len(upcoming) > 1:
                yield upcoming.popleft().result()
        for last in upcoming:
            yield last.result()
