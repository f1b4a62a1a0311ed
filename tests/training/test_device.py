"""Device: what each process computes on, and with which precision."""

import pytest
import torch

from training.device import process_device, tensor_float_32
from training.errors import TrainingError


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_tf32_is_allowed_within_its_block_and_on_a_gpu_only() -> None:
    before = flags()
    with tensor_float_32(torch.device("cpu")):
        assert flags() == before
    with tensor_float_32(torch.device("cuda")):
        assert flags() == (True, True)
    assert flags() == before


def test_under_torchrun_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert process_device(torch.device("cuda")) == torch.device("cuda", 1)
    assert process_device(torch.device("cpu")) == torch.device("cpu")
    assert chosen == [1]
    with pytest.raises(TrainingError, match="--device must be cuda under torchrun"):
        process_device(torch.device("cuda", 0))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(TrainingError, match="--nproc-per-node must be at most 2"):
        process_device(torch.device("cuda"))
