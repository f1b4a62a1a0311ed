"""Training on an emulated GPU: the code that only a GPU runs."""

import pytest
import torch
from rich.console import Console

from tests.emulated_gpu import CPU, GPU, emulated_gpu
from training.data import load_data
from training.loop.train import train
from training.recipe import load_recipe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gradient", "free_bytes"), [("jfb", 2**30), ("jacobian", 0)], ids=["data on the GPU", "data on the host"]
)
def test_a_run_on_a_gpu_learns_the_same_as_on_a_cpu_wherever_its_data_is(
    gradient: str, free_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("digits").changed({"optimisation.epochs": 1, "gradient.name": gradient})
    console = Console(quiet=True)
    data = load_data(recipe, console)
    expected = train(recipe, data, device=CPU, console=console)
    with emulated_gpu():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, 2**31))
        found = train(recipe, data, device=GPU, console=console)
        assert all(parameter.device == GPU for parameter in found.network.parameters())
    assert found.test == expected.test
    assert [epoch.train_loss for epoch in found.history] == [epoch.train_loss for epoch in expected.history]
