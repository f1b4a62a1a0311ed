"""Evaluation: one pass must give the answers of a pass at every tolerance and cap."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

import jfb
from jfb import ModelConfig, predict
from jfb.architectures import build
from jfb.config import ArchitectureSpec, InputSpec, Serving
from jfb.solvers import SOLVERS, solvers_for
from tests.jfb.networks import small_monotone_mlp
from training.data import Data, Split
from training.errors import ModelError
from training.evaluation.evaluate import Evaluation, anytime, evaluate, outcomes, recommend
from training.evaluation.trajectories import NO_ANSWER, Trajectories, record
from training.reports.evaluation_report import write_evaluation_report

CPU = torch.device("cpu")
CLASSES = ["apple", "pear", "plum"]


@pytest.fixture
def network() -> jfb.ImplicitNetwork:
    """Slow to converge, and not trained: its answers change on the way."""
    torch.manual_seed(0)
    return build("implicit_mlp", (4,), 3, {"width": 16, "contraction": 0.97, "slope": 0.9}).eval()


def config(serving: Serving | None = None) -> ModelConfig:
    return ModelConfig(
        architecture=ArchitectureSpec(name="implicit_mlp", arguments={"width": 16, "contraction": 0.97, "slope": 0.9}),
        input=InputSpec(shape=(4,), kind="vector"),
        classes=CLASSES,
        serving=serving or Serving(max_iterations=60),
    )


def vectors(n: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    return Split(3 * torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator))


def fruit() -> Data:
    return Data(vectors(5, 2), vectors(40, 3), vectors(50, 4), CLASSES, InputSpec(shape=(4,), kind="vector"))


@pytest.mark.parametrize("solver", solvers_for(jfb.ImplicitNetwork))
@pytest.mark.parametrize("norm", jfb.ResidualNorm)
def test_one_pass_gives_the_labels_and_counts_of_predict_at_every_tolerance_and_cap(
    network: jfb.ImplicitNetwork, solver: str, norm: jfb.ResidualNorm, console: Console
) -> None:
    inputs = vectors(60).inputs
    serving = Serving(solver=solver, residual_norm=norm)
    # Batches of 7, so that rows are gathered and joined differently than in predict.
    part = record(network, inputs, serving, tolerance=1e-4, max_iterations=40, device=CPU, console=console, batch_size=7)
    seen = set()
    for tolerance in (1.0, 0.1, 1e-2, 1e-3, 1e-4):
        for cap in (1, 2, 5, 17, 40):
            answers = part.answers(tolerance, cap)
            expected = predict(
                network, inputs, tolerance=tolerance, max_iterations=cap, residual_norm=norm, solver=SOLVERS[solver]()
            )
            assert torch.equal(answers.index, expected.logits.argmax(1))
            assert torch.equal(answers.iterations, expected.solution.iterations)
            assert answers.converged.tolist() == [status == "converged" for status in expected.solution.status]
            seen.add(tuple(answers.index.tolist()))
    assert len(seen) > 1, "the answers must depend on where one stops, or this shows nothing"


def test_a_row_that_diverges_has_no_answer_from_then_on_and_counts_as_wrong_and_unconverged() -> None:
    nan = torch.nan
    part = Trajectories(
        residual=torch.tensor([[1.0, 0.1, 0.01], [1.0, torch.inf, nan], [0.01, nan, nan]]),
        index=torch.tensor([[0, 1, 1], [1, NO_ANSWER, NO_ANSWER], [1, NO_ANSWER, NO_ANSWER]]),
        first_index=torch.tensor([0, 1, 0]),
    )
    answers = part.answers(0.01, 3)
    assert answers.index.tolist() == [1, NO_ANSWER, 1]
    assert answers.iterations.tolist() == [3, 2, 1]
    assert answers.converged.tolist() == [True, False, True]
    (overall, *_) = outcomes(part, torch.tensor([1, 1, 1]), ["a", "b"], 0.01, 3)
    assert overall.accuracy == pytest.approx(2 / 3)
    assert overall.unconverged == pytest.approx(1 / 3)
    assert part.answers(0.01, 1).index.tolist() == [0, 1, 1], "at a cap of one it had not diverged yet"
    accuracy = {outcome.iterations: outcome.accuracy for outcome in anytime(part, torch.tensor([1, 1, 1]), 0.01)}
    one, two = pytest.approx(1 / 3), pytest.approx(2 / 3)
    assert accuracy == {0: one, 1: two, 2: two, 3: two, 5: two, 8: two}


def test_outcomes_are_means_over_all_inputs_and_over_each_class_that_has_any() -> None:
    part = Trajectories(
        residual=torch.tensor([[0.5, 0.1], [0.1, torch.nan], [0.5, 0.4], [0.1, torch.nan]]),
        index=torch.tensor([[0, 0], [0, -1], [0, 1], [1, -1]]),
        first_index=torch.zeros(4, dtype=torch.int64),
    )
    found = {outcome.label: outcome for outcome in outcomes(part, torch.tensor([0, 0, 1, 0]), ["a", "b", "none"], 0.2, 2)}
    assert set(found) == {None, "a", "b"}
    assert (found[None].inputs, found[None].accuracy, found[None].iterations, found[None].unconverged) == (4, 0.75, 1.5, 0.25)
    assert (found["a"].inputs, found["a"].iterations, found["a"].p95_iterations) == (3, pytest.approx(4 / 3), 2)
    assert found["a"].accuracy == pytest.approx(2 / 3)
    assert (found["b"].accuracy, found["b"].unconverged) == (1.0, 1.0)


def test_95_percent_of_the_inputs_take_at_most_the_percentile() -> None:
    residual = torch.full((100, 30), 1.0)
    for row, iterations in enumerate([3] * 94 + [7] * 2 + [25] * 4):
        residual[row, iterations - 1 :] = 0.0
    part = Trajectories(residual, torch.zeros(100, 30, dtype=torch.int64), torch.zeros(100, dtype=torch.int64))
    (overall, *_) = outcomes(part, torch.zeros(100, dtype=torch.int64), ["a"], 0.5, 30)
    assert overall.p95_iterations == 7


def test_the_recommended_tolerance_is_the_loosest_that_costs_at_most_a_twentieth_of_a_point() -> None:
    rows = 10_000
    residual = torch.tensor([[1.0, 0.1, 0.01, 0.001]]).expand(rows, -1)
    labels = torch.zeros(rows, dtype=torch.int64)

    def part(*wrong: int) -> Trajectories:
        index = torch.zeros(rows, 4, dtype=torch.int64)
        for column, count in enumerate(wrong):
            index[:count, column] = 1
        return Trajectories(residual, index, index[:, 0])

    tolerances = (1.0, 0.1, 0.01, 0.001)
    assert recommend(part(500, 105, 102, 100), labels, tolerances, 4) == 0.1
    assert recommend(part(500, 106, 102, 100), labels, tolerances, 4) == 0.01
    assert recommend(part(100, 100, 100, 100), labels, tolerances, 4) == 1.0
    assert recommend(part(500, 300, 200, 100), labels, tolerances, 4) == 0.001


def test_the_test_part_is_reported_and_the_validation_part_decides(network: jfb.ImplicitNetwork, console: Console) -> None:
    data = fruit()
    one = evaluate(network, config(), data, device=CPU, console=console)
    spoilt = Data(data.train, data.validation, vectors(50, 9), CLASSES, data.input)
    two = evaluate(network, config(), spoilt, device=CPU, console=console)
    assert one.recommended_tolerance == two.recommended_tolerance
    assert one.outcomes != two.outcomes
    assert one.validation_inputs == 40


def test_the_models_own_tolerance_and_cap_are_in_the_table(network: jfb.ImplicitNetwork, console: Console) -> None:
    found = evaluate(
        network,
        config(Serving(tolerance=0.02, max_iterations=33)),
        fruit(),
        device=CPU,
        console=console,
        tolerances=(0.1,),
        caps=(4,),
    )
    assert {(o.tolerance, o.max_iterations) for o in found.outcomes} == {(0.1, 4), (0.1, 33), (0.02, 4), (0.02, 33)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerances": (0.1, 0.0)}, r"--tolerances must be positive finite numbers \(got \[0.1, 0.0\]\)"),
        ({"tolerances": (float("nan"),)}, "--tolerances must be positive"),
        ({"caps": (0,)}, r"--caps must be at least 1 \(got \[0\]\)"),
    ],
)
def test_tolerances_and_caps_out_of_range_are_rejected(
    change: dict[str, tuple[float, ...]], message: str, network: jfb.ImplicitNetwork, console: Console
) -> None:
    with pytest.raises(ModelError, match=message):
        evaluate(network, config(), fruit(), device=CPU, console=console, **change)  # type: ignore[arg-type]


def test_data_of_another_shape_or_other_classes_is_rejected(network: jfb.ImplicitNetwork, console: Console) -> None:
    data = fruit()
    longer = Data(data.train, data.validation, data.test, CLASSES, InputSpec(shape=(5,), kind="vector"))
    renamed = Data(data.train, data.validation, data.test, CLASSES[::-1], data.input)
    with pytest.raises(ModelError, match=r"shape \[4\] \(got \[5\]\)"):
        evaluate(network, config(), longer, device=CPU, console=console)
    with pytest.raises(ModelError, match="classes must be the model's"):
        evaluate(network, config(), renamed, device=CPU, console=console)


def test_the_report_is_a_table_of_every_class_and_a_picture(
    network: jfb.ImplicitNetwork, console: Console, tmp_path: Path
) -> None:
    found: Evaluation = evaluate(network, config(), fruit(), device=CPU, console=console)
    write_evaluation_report(tmp_path, "fruit", found)
    with (tmp_path / "evaluation.csv").open() as file:
        lines = list(csv.DictReader(file))
    rows, times = ([line for line in lines if bool(line["solver"]) == of_solvers] for of_solvers in (False, True))
    assert len(rows) == len(found.outcomes)
    assert {(row["solver"], float(row["tolerance"]), float(row["iterations"]), float(row["microseconds"])) for row in times} == {
        (solver, *at)
        for solver in found.solver_times.microseconds_at
        for at in zip(
            found.solver_times.tolerances,
            found.solver_times.iterations_at[solver],
            found.solver_times.microseconds_at[solver],
            strict=True,
        )
    }
    assert len(times) >= 4
    assert {row["label"] for row in rows} == {"", *CLASSES}
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["recommended_tolerance"] == found.recommended_tolerance
    assert [entry["label"] for entry in content["outcomes"]] == [None] * (len(rows) // 4)
    with Image.open(tmp_path / "evaluation.png") as picture:
        picture.verify()


@pytest.mark.parametrize("solver", ["forward_backward", "peaceman_rachford"])
def test_one_pass_is_exact_for_solvers_that_split_the_map_too(solver: str, console: Console) -> None:
    network = small_monotone_mlp(scale=4.0).float()
    inputs = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    part = record(network, inputs, Serving(solver=solver), tolerance=1e-4, max_iterations=60, device=CPU, console=console)
    seen = set()
    for tolerance, cap in ((1e-1, 60), (1e-2, 60), (1e-4, 60), (1e-4, 3)):
        answers = part.answers(tolerance, cap)
        expected = predict(network, inputs, tolerance=tolerance, max_iterations=cap, solver=SOLVERS[solver]())
        assert torch.equal(answers.index, expected.logits.argmax(1))
        assert torch.equal(answers.iterations, expected.solution.iterations)
        seen.add(tuple(answers.iterations.tolist()))
    assert len(seen) == 4
