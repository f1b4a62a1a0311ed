"""Comparison of gradients: the measurements, and that measuring does not change the run."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from jfb.architectures import build
from jfb.config import InputSpec
from jfb.gradients import JFB, Jacobian, Search
from training.__main__ import main
from training.comparison.alignment import AlignmentRecorder, direction, measure_alignment
from training.comparison.fresh_process import in_fresh_process
from training.comparison.gradients import with_gradient
from training.comparison.memory import memory_by_iterations
from training.data import load_data
from training.errors import RecipeError
from training.loop.train import train
from training.recipe import Recipe, load_recipe

CPU = torch.device("cpu")
PLAIN = """
data: {source: sklearn/digits, test: 0.2}
network: {name: implicit_resnet, arguments: {channels: [16], pool: [2]}}
"""
SEARCH = Search(tolerance=1e-6, max_iterations=500)


def batch(n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def test_the_cosine_falls_from_one_as_the_map_contracts_less() -> None:
    cosines = []
    for contraction in (0.001, 0.5, 0.95):
        torch.manual_seed(0)
        network = build("implicit_mlp", (6,), 3, {"width": 16, "contraction": contraction})
        found = measure_alignment(network, *batch(), SEARCH, step=0)
        assert found.adjoint_residual <= 1e-6
        cosines.append(found.cosine)
    assert cosines[0] > 0.9999
    assert cosines[0] > cosines[1] > cosines[2] > 0, "JFB is a descent direction (Theorem 0.2)"


def test_the_contraction_factor_of_a_linear_map_is_the_norm_of_its_matrix() -> None:
    torch.manual_seed(0)
    network = build("implicit_mlp", (6,), 3, {"width": 4, "contraction": 0.8, "slope": 1.0})
    found = measure_alignment(network, *batch(), SEARCH, step=7)
    norm = 0.8 * float(torch.linalg.matrix_norm(network.get_parameter("latent.weight").detach(), 2))
    assert found.contraction_max == pytest.approx(norm, rel=0.02)
    assert found.contraction_mean == pytest.approx(norm, rel=0.02)
    assert found.contraction_bound is not None
    assert found.contraction_max <= found.contraction_bound + 1e-6
    assert found.step == 7


def test_a_direction_is_what_backward_leaves_in_the_parameters_before_the_readout() -> None:
    torch.manual_seed(0)
    network = build("implicit_mlp", (6,), 3, {"width": 8})
    inputs, labels = batch()
    for gradient in (JFB(), Jacobian(1e-6)):
        found = direction(network, gradient, SEARCH, inputs, labels)
        network.zero_grad()
        state, _ = gradient(network, network.inject(inputs), SEARCH)
        torch.nn.functional.cross_entropy(network.readout(state), labels).backward()  # type: ignore[no-untyped-call]
        expected = [p.grad.flatten() for name, p in network.named_parameters() if "classify" not in name and p.grad is not None]
        torch.testing.assert_close(found, torch.cat(expected))


def test_measuring_alignment_does_not_change_the_weights(quick: Recipe, console: Console) -> None:
    recipe = quick.changed({"network.arguments": {"channels": [8], "pool": [2], "dropout": 0.2}})
    data = load_data(recipe, console)
    recorder = AlignmentRecorder(recipe.search.build(), every=10, rows=16)
    plain = train(recipe, data, device=CPU, console=console).network.state_dict()
    measured = train(recipe, data, device=CPU, console=console, before_step=recorder).network.state_dict()
    assert all(torch.equal(tensor, measured[name]) for name, tensor in plain.items())
    assert [alignment.step for alignment in recorder.alignments] == [0, 10, 20]
    assert all(alignment.cosine > 0 for alignment in recorder.alignments)


@pytest.mark.slow
@pytest.mark.long
def test_memory_grows_with_the_iterations_when_unrolled_and_not_under_jfb() -> None:
    recipe = load_recipe("digits").changed({"optimisation.batch_size": 400})
    spec = InputSpec(shape=(1, 8, 8), kind="image", low=0, high=16)

    def growth(gradient: str) -> int:
        points = in_fresh_process(memory_by_iterations, with_gradient(recipe, gradient), spec, 10, CPU)
        assert [point.iterations for point in points] == sorted(point.iterations for point in points)
        return points[-1].bytes - points[0].bytes

    state = 4 * 400 * 32 * 4 * 4  # bytes of a batch of states
    unrolled = growth("unrolled")
    assert unrolled > 39 * state
    assert growth("jfb") < unrolled / 4, "what is left is the allocator's"


def test_the_explicit_network_is_evaluated_with_one_application(quick: Recipe) -> None:
    assert with_gradient(quick, "explicit").serving.max_iterations == 1
    assert with_gradient(quick, "unrolled").serving == quick.serving
    tuned = quick.changed({"gradient": {"name": "neumann", "options": {"terms": 2}}})
    assert with_gradient(tuned, "neumann").gradient.options == {"terms": 2}, "the recipe's own options are kept"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_compare_writes_one_line_per_gradient_and_two_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "plain.yaml").write_text(PLAIN)
    arguments = ["--recipe", str(tmp_path / "plain.yaml"), "--gradients", "jfb, explicit", "--epochs", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["training", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    with (out / "comparison.csv").open() as file:
        rows = {row["gradient"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["jfb", "explicit"]
    assert float(rows["explicit"]["test_iterations"]) == 1
    assert float(rows["jfb"]["test_iterations"]) > 1
    assert float(rows["jfb"]["test_accuracy"]) > 0.3
    assert all(float(row["memory_mb"]) > float(row["step_memory_mb"]) > 0 for row in rows.values())
    with (out / "alignment.csv").open() as file:
        alignments = list(csv.DictReader(file))
    assert all(float(row["contraction_max"]) <= float(row["contraction_bound"]) for row in alignments)
    for name in ("comparison.png", "memory.png"):
        with Image.open(out / name) as picture:
            picture.verify()
    page = (out / "comparison.md").read_text()
    assert "| jfb | " in page
    assert "python -m training compare --recipe" in page


@pytest.mark.slow
def test_an_error_in_a_fresh_process_is_raised_here() -> None:
    with pytest.raises(RecipeError, match=r"recipe: must be one of .* \(got 'nope'\)"):
        in_fresh_process(load_recipe, "nope")


def test_an_unknown_gradient_is_an_error_that_lists_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "compare", "--recipe", "digits", "--gradients", "jfb,exact"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--gradients must be one of" in capsys.readouterr().err


SLEEPS_IN_A_FRESH_PROCESS = """
import time
from training.comparison.fresh_process import in_fresh_process

class Sleep:
    def __call__(self):
        print("computing", flush=True)
        time.sleep(600)

if __name__ == "__main__":
    in_fresh_process(Sleep())
"""


@pytest.mark.slow
def test_a_fresh_process_ends_if_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "sleeps.py"
    script.write_text(SLEEPS_IN_A_FRESH_PROCESS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "computing\n"
        parent.kill()
        parent.communicate(timeout=30)  # until the end of the output, which the fresh process would hold open for ten minutes
