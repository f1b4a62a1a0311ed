"""Placement: what fits is on the device, and what does not is read ahead."""

import threading

import pytest
import torch
from rich.console import Console

from training.data import Data, load_data
from training.data.placement import MAX_FRACTION, fits, free_memory, load_batches, place, read_ahead
from training.recipe import load_recipe

META = torch.device("meta")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(load_recipe("digits"), Console(quiet=True))


def test_data_fits_into_a_fraction_of_the_free_memory() -> None:
    assert fits(int(MAX_FRACTION * 1000), free_bytes=1000)
    assert not fits(int(MAX_FRACTION * 1000) + 1, free_bytes=1000)
    assert not fits(1, free_bytes=free_memory(CPU)), "the data is in the host's memory already"


def test_all_parts_that_training_reads_are_placed_or_none(digits: Data) -> None:
    inputs = sum(len(part.labels) for part in (digits.train, digits.validation, digits.test))
    needed = inputs * (64 + 8)  # one byte per pixel, and a label
    placed = place(digits, META, int(needed / MAX_FRACTION))
    for part in (placed.train, placed.validation, placed.test):
        assert part.inputs.device == part.labels.device == META
    assert (placed.classes, placed.input) == (digits.classes, digits.input)
    assert place(digits, META, int(needed / MAX_FRACTION) - 1) is digits


def test_a_curriculum_is_placed_too(digits: Data) -> None:
    data = Data(digits.train, digits.validation, digits.test, digits.classes, digits.input, curriculum=(digits.test,))
    assert [part.inputs.device for part in place(data, META, 2**30).curriculum] == [META]


def test_batches_are_the_rows_in_the_type_of_the_data(digits: Data) -> None:
    rows = [torch.tensor([3, 1]), torch.tensor([0, 3])]
    for batch, (inputs, labels) in zip(rows, load_batches(digits.train, rows, CPU), strict=True):
        assert inputs.dtype == torch.uint8
        assert torch.equal(inputs, digits.train.inputs[batch])
        assert torch.equal(labels, digits.train.labels[batch])


def test_the_next_batch_is_read_in_the_background_in_order_and_no_further() -> None:
    read: list[int] = []
    second = threading.Event()

    def note(rows: torch.Tensor) -> int:
        read.append(int(rows))
        if len(read) == 2:
            second.set()
        return int(rows)

    batches = read_ahead(note, [*torch.arange(5)])
    assert next(batches) == 0
    assert second.wait(10), "the second batch is read while the caller works on the first"
    batches_read = len(read)
    assert [*batches] == [1, 2, 3, 4]
    assert batches_read == 2
    assert read == [0, 1, 2, 3, 4]


def test_an_error_of_a_read_reaches_the_caller() -> None:
    def fail(rows: torch.Tensor) -> int:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        next(read_ahead(fail, [torch.tensor(0)]))
    assert [*read_ahead(fail, [])] == []
