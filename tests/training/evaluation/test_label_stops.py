"""Label stops on held-out data: the evaluation must match what ``jfb.predict``, and so a server, then does."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

import jfb
from jfb import ImplicitNetwork, LabelStop, ModelConfig, predict
from jfb.architectures import ARCHITECTURES, ImplicitResNet
from jfb.config import ArchitectureSpec, InputSpec, Serving
from jfb.label_stop import Kind
from tests.jfb.networks import small_mlp
from training.__main__ import main
from training.data import Data, Split, load_data
from training.evaluation import label_stops
from training.evaluation.label_stops import SAFETIES, LabelTrajectories, PartOutcome, calibrate
from training.recipe import load_recipe

CPU = torch.device("cpu")


class Unproven(ImplicitResNet):
    """An ``implicit_resnet`` without a guarantee that it contracts, like networks from other projects."""

    def contraction_bound(self) -> None:  # type: ignore[override]
        return None


class Late(ImplicitNetwork):
    """``u = (0.1 a, 0.8 b) + q`` with the logits ``±(a + b)``: where a is the larger, the iteration looks faster than it is."""

    def inject(self, inputs: Tensor) -> Tensor:
        return inputs

    def initial_state(self, injection: Tensor) -> Tensor:
        return torch.zeros_like(injection)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        return state * torch.tensor([0.1, 0.8]) + injection

    def readout(self, state: Tensor) -> Tensor:
        score = state.sum(1)
        return torch.stack([score, -score], 1)


def config(shape: tuple[int, ...], classes: int, **serving: object) -> ModelConfig:
    return ModelConfig(
        architecture=ArchitectureSpec(name="implicit_mlp", arguments={"width": 6}),
        input=InputSpec(shape=shape, kind="vector"),
        classes=[str(k) for k in range(classes)],
        serving=Serving(max_iterations=1000).model_copy(update=serving),
    )


def data(of: ModelConfig, rows: int, scale: Tensor | float = 1.0) -> Data:
    def split(seed: int) -> Split:
        inputs = scale * torch.randn(rows, *of.input.shape, generator=torch.Generator().manual_seed(seed))
        return Split(inputs, torch.zeros(rows, dtype=torch.int64))

    return Data(split(0), split(1), split(2), of.classes, of.input)


def test_a_row_stops_at_the_first_iteration_that_settles_it_or_at_its_end() -> None:
    nan = torch.nan
    recorded = LabelTrajectories(
        ratio=torch.tensor([[torch.inf, 0.8, 0.3, 0.1], [torch.inf, 0.45, 0.6, nan], [2.0, 1.5, nan, nan]]),
        index=torch.tensor([[0, 1, 1, 2], [1, 0, 1, -1], [1, 0, -1, -1]]),
        iterations=torch.tensor([4, 3, 2]),
        exact=torch.tensor([2, 1, -1]),
        sensitivity=1.0,
    )
    assert recorded.outcome(1.0) == PartOutcome(inputs=3, differing=3, iterations=2.0)
    assert recorded.outcome(2.0) == PartOutcome(inputs=3, differing=3, iterations=pytest.approx((3 + 2 + 2) / 3))
    assert recorded.outcome(4.0) == PartOutcome(inputs=3, differing=1, iterations=pytest.approx((4 + 3 + 2) / 3))


@pytest.mark.parametrize(
    ("inputs", "differing", "acceptable"), [(1000, 1, True), (1999, 2, False), (999, 1, False), (5, 0, True)]
)
def test_at_most_one_label_in_a_thousand_may_differ(inputs: int, differing: int, acceptable: bool) -> None:
    assert PartOutcome(inputs, differing, 3.0).acceptable is acceptable


def test_a_sensitivity_that_is_too_small_gets_a_sufficient_safety_factor(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_stops, "_quantile", lambda losses: 1.0)
    of = config((2,), 2, tolerance=1e-4)
    scale = torch.tensor([1.0, 0.1])  # the slow part is a tenth of the first movement, and a third of the label
    held_out = data(of, 3000, scale)
    found = calibrate(Late(), of, held_out, device=CPU, console=console)
    assert found.kind is Kind.ESTIMATE
    assert found.safety > 1
    assert found.sensitivity is not None
    inputs, exact = held_out.validation.inputs, held_out.validation.inputs / torch.tensor([0.9, 0.2])
    differing = {}
    for safety in (*SAFETIES[: SAFETIES.index(found.safety) + 1],):
        stop = LabelStop(Kind.ESTIMATE, found.sensitivity, safety=safety)
        answer = predict(Late(), inputs, tolerance=found.tolerance, max_iterations=1000, label_stop=stop)
        differing[safety] = int((answer.logits.argmax(1) != (exact.sum(1) < 0)).sum())
    *smaller, chosen = differing.values()
    assert all(count > 3 for count in smaller)
    assert chosen <= 3
    assert found.validation.differing == chosen


def test_label_stops_are_not_offered_if_no_safety_factor_suffices(console: Console) -> None:
    of = config((2,), 2, tolerance=1e-4)
    held_out, harder = data(of, 1000, torch.tensor([1.0, 0.0])), data(of, 500, torch.tensor([1.0, 0.1]))
    blind = Data(held_out.train, held_out.validation, harder.test, of.classes, of.input)
    found = calibrate(Late(), of, blind, device=CPU, console=console)
    assert found.validation.acceptable
    assert not found.test.acceptable
    assert not found.offered
    assert found.calibration is None


def test_a_guarantee_needs_no_calibration(console: Console) -> None:
    network = small_mlp(contraction=0.8).float()
    of = config((5,), 3)
    held_out = data(of, 300)
    found = calibrate(network, of, held_out, device=CPU, console=console)
    assert (found.kind, found.safety, found.sensitivity, found.calibration) == (Kind.GUARANTEE, 1.0, None, None)
    assert found.offered
    assert found.test.differing == found.validation.differing == 0
    stop = LabelStop.of(network, of.serving)
    answer = predict(network, held_out.test.inputs, tolerance=found.tolerance, max_iterations=1000, label_stop=stop)
    assert found.test.iterations == pytest.approx(float(answer.solution.iterations.double().mean()), abs=0.01)


@pytest.mark.slow
def test_evaluate_stores_the_calibration_and_the_model_then_stops_as_it_says(
    digits_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "unproven", Unproven)
    folder = tmp_path / "unproven" / "1"
    shutil.copytree(digits_store / "digits" / "1", folder)
    written = json.loads((folder / "config.json").read_text())
    assert "label_calibration" not in written["serving"], "digits has a guarantee"
    written["architecture"]["name"] = "unproven"
    (folder / "config.json").write_text(json.dumps(written))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["training", "evaluate", "unproven", "--store", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0

    loaded = jfb.load(folder)
    calibration = loaded.config.serving.label_calibration
    assert calibration is not None
    report = json.loads((folder / "evaluation.json").read_text())["label_stops"]
    assert (report["kind"], report["offered"], report["safety"]) == ("estimate", True, calibration.safety)
    assert report["test"]["differing"] == calibration.differing == 0
    test = load_data(load_recipe("digits"), console).test.inputs.float()
    stop = LabelStop.of(loaded.network, loaded.config.serving)
    assert stop is not None
    assert stop.kind is Kind.ESTIMATE
    stopped = predict(loaded.network, test, tolerance=calibration.tolerance, max_iterations=100, label_stop=stop)
    exact = predict(loaded.network, test, tolerance=1e-6, max_iterations=1000)
    assert len(test) == calibration.inputs
    assert int((stopped.logits.argmax(1) != exact.logits.argmax(1)).sum()) == calibration.differing
    assert float(stopped.solution.iterations.double().mean()) == pytest.approx(calibration.iterations, abs=0.02)
    assert calibration.iterations < 0.7 * float(exact.solution.iterations.double().mean())
    card = (folder / "README.md").read_text()
    assert "An estimate with the safety factor" in card
    assert f"0 of {len(test)} labels differ from the exact fixed point's, after {calibration.iterations:.1f} iterations" in card
