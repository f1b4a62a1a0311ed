"""``python -m training train``, as a user runs it."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

import jfb
from jfb.checkpoint import models
from training.__main__ import main
from training.data import load_data
from training.recipe import load_recipe


@dataclass(frozen=True)
class Finished:
    code: str | int | None
    out: str
    err: str


Run = Callable[..., Finished]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line with some arguments, in this process: a start of Python each would be most of the time."""

    def call(*arguments: str) -> Finished:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["training", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Finished(exit_.value.code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def digits_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits recipe, trained as shipped; the store is named by the environment."""
    store = tmp_path_factory.mktemp("store")
    finished = subprocess.run(
        [sys.executable, "-m", "training", "train", "digits"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JFB_MODEL_STORE": str(store)},
    )
    assert finished.returncode == 0, finished.stderr
    assert models(store) == {"digits": [1]}
    return store / "digits" / "1"


@pytest.mark.slow
def test_digits_reaches_its_accuracy_on_the_held_out_part(digits_version: Path) -> None:
    metrics = json.loads((digits_version / "metrics.json").read_text())
    assert metrics["accuracy"] >= 0.975
    assert metrics["converged"] == 1.0
    assert metrics["contraction_factor"] <= metrics["contraction_bound"] < 1


@pytest.mark.slow
def test_the_saved_model_answers_as_its_metrics_say(digits_version: Path, console: Console) -> None:
    checkpoint = jfb.load(digits_version)
    data = load_data(load_recipe("digits").data, console)
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
    config = jfb.load(digits_version).config
    assert config.provenance["recipe"] == recipe.model_dump(mode="json", exclude_none=True)
    assert config.classes == list("0123456789")


@pytest.mark.slow
def test_a_server_of_another_user_can_read_every_file(digits_version: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in digits_version.iterdir()}
    files = ("config.json", "model.safetensors", "metrics.json", "history.csv", "curves.png", "samples.json", "README.md")
    assert modes == dict.fromkeys(files, 0o644)


@pytest.mark.slow
def test_samples_are_a_test_input_of_each_class_which_the_model_knows(digits_version: Path) -> None:
    samples = json.loads((digits_version / "samples.json").read_text())
    assert [sample["label"] for sample in samples] == list("0123456789")
    inputs = torch.tensor([sample["input"] for sample in samples]).float()
    prediction = jfb.predict(jfb.load(digits_version).network, inputs, tolerance=1e-3, max_iterations=100)
    assert int((prediction.logits.argmax(1) == torch.arange(10)).sum()) >= 9


def test_a_recipe_of_ones_own_on_a_folder_of_images(run: Run, tmp_path: Path, picture: Callable[[int, int], Image.Image]) -> None:
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
""")
    finished = run(
        *("train", str(tmp_path / "sides.yaml"), "--data", str(tmp_path / "pictures"), "--store", str(tmp_path / "store")),
        *("--seed", "3", "--gradient", "neumann"),
    )
    assert finished.code == 0, finished.err
    checkpoint = jfb.load(tmp_path / "store" / "sides" / "1")
    assert checkpoint.config.classes == ["left", "right"]
    assert checkpoint.config.provenance["recipe"]["optimisation"]["seed"] == 3
    assert checkpoint.config.provenance["recipe"]["gradient"]["name"] == "neumann"
    unseen = torch.stack([torch.frombuffer(bytearray(picture(c, 100).tobytes()), dtype=torch.uint8) for c in (0, 1)])
    prediction = jfb.predict(checkpoint.network, unseen.view(2, 1, 12, 10).float(), tolerance=1e-3, max_iterations=100)
    assert prediction.logits.argmax(1).tolist() == [0, 1]


def test_help_lists_the_commands_and_the_shipped_recipes(run: Run) -> None:
    assert "train" in run("--help").out
    assert "digits, mnist" in run("train", "--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nope"), "error: unknown recipe 'nope'"),
        (("train", "digits", "--epochs", "0"), "optimisation.epochs: Input should be greater than or equal to 1, got 0"),
        (("train", "digits", "--gradient", "exact"), "'exact' is not one of"),
        (("train", "digits", "--device", "quantum"), "error: --device quantum: "),
        (("train", "digits", "--data", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_end_with_one_clear_message_and_no_traceback(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    finished = run(*arguments, "--store", str(tmp_path))
    assert finished.code != 0
    assert message in finished.err
    assert "Traceback" not in finished.err
    assert models(tmp_path) == {}
