"""Fitting mixing: against the optimum in closed form, and on a trained model."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import jfb
from jfb import ImplicitNetwork, solve
from jfb.solvers import Anderson, Mixing, Picard
from tests.jfb.networks import small_monotone_mlp
from tests.jfb.onnx.folders import foreign_folder
from training.acceleration import fit
from training.acceleration.fit import fit_mixing, picard_rate
from training.data import load_parts
from training.errors import ModelError
from training.interop.authors import Family, import_authors
from training.recipe import load_recipe

CPU = torch.device("cpu")


class Diagonal(ImplicitNetwork):
    """``u = d ⊙ u + inputs``: the best mixing is A = diag(1 / (1 − d)), which needs two evaluations."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors)
        self.factors: Tensor

    def inject(self, inputs: Tensor) -> Tensor:
        return inputs

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return self.factors * state + injection

    def readout(self, state: Tensor) -> Tensor:
        return state


@pytest.mark.slow
def test_it_finds_over_relaxation_channel_by_channel(console: Console) -> None:
    network = Diagonal(torch.tensor([0.7, 0.2, -0.3, 0.5])).eval()
    inputs = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    mixing = fit_mixing(network, inputs, device=CPU, console=console)
    arguments = {"tolerance": 1e-4, "max_iterations": 100}
    plain = solve(network, inputs, solver=Picard(), **arguments)  # type: ignore[arg-type]
    mixed = solve(network, inputs, solver=mixing, **arguments)  # type: ignore[arg-type]
    assert mixed.iterations.double().mean() < 0.5 * plain.iterations.double().mean()
    torch.testing.assert_close(mixed.fixed_point, inputs / (1 - network.factors), rtol=0, atol=2e-3)


def test_the_safeguards_rate_is_picards(console: Console) -> None:
    inputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    assert picard_rate(Diagonal(torch.full((3,), 0.8)), inputs, device=CPU) == pytest.approx(0.8, abs=1e-3)
    assert picard_rate(Diagonal(torch.full((3,), 0.999)), inputs, device=CPU) == fit.MAX_RATE
    assert picard_rate(Diagonal(torch.full((3,), 0.1)), inputs, device=CPU) > fit.MIN_RATE, "rounding does not shrink"


def test_it_is_repeatable_and_leaves_the_network_as_it_is(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "STEPS", 5)
    network = Diagonal(torch.tensor([0.7, 0.2]))
    inputs = torch.randn(60, 2)
    one, two = (fit_mixing(network, inputs, device=CPU, console=console).tensors for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert network.factors.tolist() == pytest.approx([0.7, 0.2])


def test_it_ends_in_time_however_slow_the_network_is(console: Console) -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            self.now += 30  # a step
            return self.now

    clock = Clock()
    fit_mixing(Diagonal(torch.tensor([0.5])), torch.randn(10, 1), device=CPU, console=console, clock=clock)
    assert clock.now <= 30 + fit.MAX_SECONDS + 30


def test_networks_that_it_is_not_for_are_named(tmp_path: Path, console: Console) -> None:
    arguments = {"device": CPU, "console": console}
    with pytest.raises(ModelError, match="mixing is not for monotone networks: MonotoneMLP has splitting solvers"):
        fit_mixing(small_monotone_mlp().float(), torch.randn(3, 5), **arguments)  # type: ignore[arg-type]
    foreign = jfb.load(foreign_folder(tmp_path / "foreign")).network
    with pytest.raises(ModelError, match="mixing is fitted by gradients, and the step of OnnxNetwork has none"):
        fit_mixing(foreign, torch.randn(3, 3), **arguments)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"the state must have at most 512 channels to be mixed \(got 513\)"):
        fit_mixing(Diagonal(torch.zeros(513)), torch.randn(3, 513), **arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_on_digits_it_takes_fewer_iterations_than_picard_and_anderson_and_never_two_more_than_picard(
    digits_store: Path, console: Console
) -> None:
    loaded = jfb.load(digits_store / "digits" / "1")
    data = load_parts(load_recipe("digits").data, console)
    mixing = fit_mixing(loaded.network, data.train.inputs, device=CPU, console=console)
    test = data.test.inputs.float()
    noise = 16 * torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    strange = torch.cat([noise, 16 - test[:100], 0 * test[:1], 0 * test[:1] + 16, test[:100].roll(4, 3)])
    mean: dict[tuple[str, float], float] = {}
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        for inputs in (test, strange):
            found = {
                type(solver): jfb.predict(loaded.network, inputs, tolerance=tolerance, max_iterations=200, solver=solver)
                for solver in (Picard(), Anderson(), mixing)
            }
            iterations = {kind: prediction.solution.iterations for kind, prediction in found.items()}
            assert (iterations[Mixing] - iterations[Picard]).max() <= 2
            if inputs is test:
                mean |= {(kind.__name__, tolerance): float(counts.double().mean()) for kind, counts in iterations.items()}
            if tolerance == 1e-4:
                exact = jfb.predict(loaded.network, inputs, tolerance=1e-6, max_iterations=500).logits.argmax(1)
                assert (found[Mixing].logits.argmax(1) == exact).all()
    for tolerance in (1e-2, 1e-3, 1e-4):
        assert mean["Mixing", tolerance] < mean["Anderson", tolerance] < mean["Picard", tolerance]


def mnist(shared: Path, split: str, count: int) -> Tensor:
    table = pq.read_table(shared / "data" / "mnist" / f"{split}-00000-of-00001.parquet").slice(0, count)
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(pictures)).float().unsqueeze(1)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_on_the_authors_network_it_halves_the_iterations_of_picard_and_more(
    shared: Path, tmp_path: Path, console: Console
) -> None:
    loaded = jfb.load(import_authors(shared / "authors" / "mnist_fpn.safetensors", Family.MNIST, tmp_path, "authors"))
    mixing = fit_mixing(loaded.network, mnist(shared, "train", 4000), device=CPU, console=console)
    test = mnist(shared, "test", 500)
    blank, noise = 0 * test[:1], 255 * torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    norm = loaded.config.serving.residual_norm
    for tolerance in (1e-1, 1e-2, 1e-4):
        counts = []
        for inputs in (test, torch.cat([blank, blank + 255, noise, 255 - test[:50]])):
            plain, mixed = (
                jfb.predict(loaded.network, inputs, tolerance=tolerance, max_iterations=300, residual_norm=norm, solver=solver)
                for solver in (Picard(), mixing)
            )
            counts.append((plain.solution.iterations, mixed.solution.iterations))
            assert (mixed.solution.iterations - plain.solution.iterations).max() <= 2
            if tolerance == 1e-4:
                assert (mixed.logits.argmax(1) == plain.logits.argmax(1)).all()
        (plain_counts, mixed_counts), _ = counts
        assert mixed_counts.double().mean() < (0.6 if tolerance == 1e-1 else 0.5) * plain_counts.double().mean()
