"""``python -m training train``, as a user runs it."""

import csv
import errno
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

import jfb
from jfb.store import list_models
from training.__main__ import main
from training.commands.train import _next_steps
from training.data import load_data
from training.recipe import load_recipe, shipped_recipes


@dataclass(frozen=True)
class Finished:
    code: str | int | None
    out: str
    err: str


Run = Callable[..., Finished]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process, because starting Python would take most of the time."""

    def call(*arguments: str) -> Finished:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["training", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Finished(exit_.value.code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def digits_version(digits_store: Path) -> Path:
    """The digits recipe, trained as shipped; the store is named by the environment."""
    assert list_models(digits_store) == {"digits": [1]}
    return digits_store / "digits" / "1"


@pytest.mark.slow
def test_digits_reaches_its_accuracy_on_the_held_out_part(digits_version: Path) -> None:
    metrics = json.loads((digits_version / "metrics.json").read_text())
    assert metrics["accuracy"] >= 0.975
    assert metrics["converged"] == 1.0
    assert metrics["contraction_factor"] <= metrics["contraction_bound"] < 1


@pytest.mark.slow
def test_the_saved_model_answers_as_its_metrics_say(digits_version: Path, console: Console) -> None:
    checkpoint = jfb.load(digits_version)
    data = load_data(load_recipe("digits"), console)
    serving = checkpoint.config.serving
    prediction = jfb.predict(
        checkpoint.network,
        data.test.inputs.float(),
        tolerance=serving.tolerance,
        max_iterations=serving.max_iterations,
        residual_norm=serving.residual_norm,
    )
    metrics = json.loads((digits_version / "metrics.json").read_text())
    right = int((prediction.logits.argmax(1) == data.test.labels).sum())
    assert right == round(metrics["accuracy"] * len(data.test.labels))
    assert float(prediction.solution.iterations.float().mean()) == pytest.approx(metrics["iterations"], abs=0.02)


@pytest.mark.slow
def test_a_version_holds_history_curves_and_a_card(digits_version: Path) -> None:
    recipe = load_recipe("digits")
    with (digits_version / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in history] == list(range(1, recipe.optimisation.epochs + 1))
    assert float(history[-1]["train_loss"]) < float(history[0]["train_loss"])
    with Image.open(digits_version / "curves.png") as curves:
        curves.verify()
    card = (digits_version / "README.md").read_text()
    metrics = json.loads((digits_version / "metrics.json").read_text())
    assert f"{metrics['accuracy']:.2%}" in card
    assert f"| mean iterations of picard at tolerance 0.001 (relative), at most 100 | {metrics['iterations']:.1f} |" in card
    config = jfb.load(digits_version).config
    assert config.provenance["recipe"] == recipe.model_dump(mode="json", exclude_none=True)
    assert config.classes == list("0123456789")


@pytest.mark.slow
def test_a_server_of_another_user_can_read_every_file(digits_version: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in digits_version.iterdir()}
    files = (
        "config.json",
        "model.safetensors",
        "solver.safetensors",
        "metrics.json",
        "history.csv",
        "curves.png",
        "samples.json",
    )
    evaluation = ("README.md", "evaluation.json", "evaluation.csv", "evaluation.png")
    graphs = ("model.onnx", "inject.onnx", "initial_state.onnx", "step.onnx", "readout.onnx")
    assert modes == dict.fromkeys(files + evaluation + graphs, 0o644)


@pytest.mark.slow
def test_a_version_is_evaluated_again_and_its_default_tolerance_becomes_the_recommended_one(
    run: Run, digits_version: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits_version, tmp_path / "digits" / "1")
    before = jfb.load(tmp_path / "digits" / "1").config
    finished = run("evaluate", "digits", "--store", str(tmp_path), "--tolerances", "0.5,0.00001", "--caps", "3", "--apply")
    assert finished.code == 0, finished.err
    evaluation = json.loads((tmp_path / "digits" / "1" / "evaluation.json").read_text())
    assert {(o["tolerance"], o["max_iterations"]) for o in evaluation["outcomes"]} == {
        (tolerance, cap) for tolerance in (0.5, 0.001, 0.00001) for cap in (3, 100)
    }
    after = jfb.load(tmp_path / "digits" / "1").config
    assert after.serving.tolerance == evaluation["recommended_tolerance"]
    assert after.model_copy(update={"serving": before.serving}) == before
    metrics = json.loads((digits_version / "metrics.json").read_text())
    of_training = json.loads((digits_version / "evaluation.json").read_text())
    again, first = (
        next(o for o in one["outcomes"] if (o["tolerance"], o["max_iterations"]) == (0.001, 100))
        for one in (evaluation, of_training)
    )
    assert again["accuracy"] == pytest.approx(metrics["accuracy"])
    assert again["iterations"] == pytest.approx(first["iterations"], abs=0.02)
    # The metrics are those of the solver in training. The default is the learned one where it was measured to be faster.
    assert (again["iterations"] < metrics["iterations"]) == (before.serving.solver == "mixing")
    card = (tmp_path / "digits" / "1" / "README.md").read_text()
    assert f"| 1e-05 | {evaluation['outcomes'][-1]['accuracy']:.2%} |" in card
    assert not list((tmp_path / "digits" / "1").glob(".*"))


@pytest.mark.slow
def test_samples_are_a_test_input_of_each_class_which_the_model_knows(digits_version: Path) -> None:
    samples = json.loads((digits_version / "samples.json").read_text())
    assert [sample["label"] for sample in samples] == list("0123456789")
    inputs = torch.tensor([sample["input"] for sample in samples]).float()
    prediction = jfb.predict(jfb.load(digits_version).network, inputs, tolerance=1e-3, max_iterations=100)
    assert int((prediction.logits.argmax(1) == torch.arange(10)).sum()) >= 9


@pytest.mark.slow
def test_a_recipe_of_your_own_on_a_folder_of_images(run: Run, tmp_path: Path, picture: Callable[[int, int], Image.Image]) -> None:
    for c, name in enumerate(["left", "right"]):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(40):
            picture(c, i).save(folder / f"{i}.png")
    (tmp_path / "sides.yaml").write_text("""
data:
  source: elsewhere
  test: 0.2
  validation: 0.2
network:
  name: implicit_resnet
  arguments: {channels: [8], pool: [2]}
optimisation: {epochs: 8, batch_size: 8, learning_rate: 0.01}
serving: {accelerate: false}
""")
    finished = run(
        *("train", str(tmp_path / "sides.yaml"), "--data", str(tmp_path / "pictures"), "--store", str(tmp_path / "store")),
        *("--seed", "3", "--gradient", "neumann"),
    )
    assert finished.code == 0, finished.err
    version = tmp_path / "store" / "sides" / "1"
    outcomes = json.loads((version / "evaluation.json").read_text())["outcomes"]
    (served,) = [one for one in outcomes if one["label"] is None and (one["tolerance"], one["max_iterations"]) == (0.001, 100)]
    assert f"test accuracy {served['accuracy']:.2%} at {served['iterations']:.1f} iterations of picard, " in finished.out
    checkpoint = jfb.load(version)
    assert checkpoint.config.classes == ["left", "right"]
    assert checkpoint.config.provenance["recipe"]["optimisation"]["seed"] == 3
    assert checkpoint.config.provenance["recipe"]["gradient"]["name"] == "neumann"
    unseen = torch.stack([torch.frombuffer(bytearray(picture(c, 100).tobytes()), dtype=torch.uint8) for c in (0, 1)])
    prediction = jfb.predict(checkpoint.network, unseen.view(2, 1, 12, 10).float(), tolerance=1e-3, max_iterations=100)
    assert prediction.logits.argmax(1).tolist() == [0, 1]


def test_the_next_steps_are_commands_that_the_shell_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert shutil.which("jfb")
    assert _next_steps("digits", Path("my store")).strip().splitlines() == [
        "jfb serve --model-store 'my store'",
        "jfb predict --model digits   # in another terminal",
        "jfb evaluate digits --store 'my store'",
    ]
    monkeypatch.setenv("PATH", "/nowhere")
    steps = _next_steps("digits", Path("model_store")).strip().splitlines()
    assert Path(steps[0].removesuffix(" -m app")).resolve() == Path(sys.executable).resolve()
    assert [line.partition(" ")[2] for line in steps] == [
        "-m app",
        "-m app predict --model digits   # in another terminal",
        "-m training evaluate digits",
    ]


def test_help_lists_the_commands_and_the_shipped_recipes(run: Run) -> None:
    assert "train" in run("--help").out
    text = run("train", "--help").out
    assert all(name in text for name in shipped_recipes())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nope"), "error: recipe: must be one of"),
        (("train", "digits", "--epochs", "0"), "optimisation.epochs: must be greater than or equal to 1 (got 0)"),
        (("train", "digits", "--gradient", "exact"), "error: digits: gradient.name: must be one of jfb, neumann, "),
        (("train", "digits", "--device", "quantum"), "error: --device must be one that PyTorch can use here (got 'quantum'): "),
        (("train", "digits", "--data", "nowhere"), "nowhere"),
        (("train", "digits", "--gradient", "jbf"), "(got 'jbf'; did you mean 'jfb'?)"),
        (("evaluate", "nope"), "error: no model 'nope': must be a name in"),
    ],
)
def test_mistakes_end_with_one_clear_message_and_no_traceback(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    finished = run(*arguments, "--store", str(tmp_path))
    assert finished.code != 0
    assert message in finished.err
    assert "Traceback" not in finished.err
    assert list_models(tmp_path) == {}


def test_training_does_not_start_where_its_result_could_not_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    finished = run("train", "digits", "--store", str(tmp_path / "store"))
    assert finished.code == 1
    assert "store/digits: no version was written" in finished.err
    assert finished.out == ""


def test_a_store_that_is_read_only_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        raise OSError(errno.EROFS, "Read-only file system", "model_store/digits/1/step.onnx")

    monkeypatch.setattr("training.__main__.app", write)
    finished = run("export", "digits")
    assert finished.code == 1
    message = "a file could not be read or written: [Errno 30] Read-only file system: 'model_store/digits/1/step.onnx'"
    assert finished.err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "digits", "--only", "jfb"), "--only needs --rivals (got jfb)"),
        (("--recipe", "digits", "--rivals", "--gradients", "jfb"), "--gradients must be left out with --rivals (got jfb)"),
    ],
)
def test_a_comparison_that_is_not_what_was_asked_for_does_not_start(run: Run, arguments: tuple[str, ...], message: str) -> None:
    assert message in run("compare", *arguments).err


def test_a_comparison_checks_its_recipe_before_data_is_read(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    network = "{name: implicit_resnet, arguments: {channels: [8, 8], pool: [4, 4]}}"
    recipe.write_text(f"data: {{source: owner/name, shape: [1, 4, 4]}}\nnetwork: {network}\n")
    assert "pool: must leave" in run("compare", "--recipe", str(recipe)).err
