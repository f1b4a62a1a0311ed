"""Interrupted runs: what they save, and what resuming them gives."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from jfb import ImplicitNetwork
from training.commands.train import train as train_command
from training.data import Data, load_data
from training.errors import TrainingError
from training.loop.run_folder import SNAPSHOT, RunFolder, last_run, new_run
from training.loop.train import Trained, train
from training.recipe import Recipe, load_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(load_recipe("digits"), Console(quiet=True))


@pytest.fixture
def brief(quick: Recipe) -> Recipe:
    """Three epochs of six steps."""
    return quick.changed({"optimisation.epochs": 3, "optimisation.batch_size": 200, "network.arguments.dropout": 0.1})


class Killed(Exception):  # noqa: N818
    """Interrupts a run before a step."""


def interrupt_after(recipe: Recipe, data: Data, folder: RunFolder, steps: int) -> None:
    """Train for the given number of steps, and interrupt the run before the next one."""
    remaining = steps

    def interrupt(network: ImplicitNetwork, inputs: Tensor, labels: Tensor) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, data, device=CPU, console=Console(quiet=True), folder=folder, before_step=interrupt)


def assert_equal(one: Trained, other: Trained) -> None:
    weights = other.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.network.state_dict().items())
    histories = [[{**vars(epoch), "seconds": 0} for epoch in trained.history] for trained in (one, other)]
    assert histories[0] == histories[1]
    assert one.epoch == other.epoch


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["a snapshot after each step", "a snapshot after each epoch"])
def test_a_run_interrupted_at_any_step_gives_the_same_weights_bit_for_bit(
    seconds: float, brief: Recipe, digits: Data, console: Console, tmp_path: Path
) -> None:
    whole = train(brief, digits, device=CPU, console=console)
    folder = RunFolder(tmp_path, seconds)
    for steps in (4, 2, 7):  # within an epoch, at the end of one, across one
        interrupt_after(brief, digits, folder, steps)
    assert_equal(train(brief, digits, device=CPU, console=console, folder=folder), whole)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_keeps_its_precision(precision: str, brief: Recipe, digits: Data, console: Console, tmp_path: Path) -> None:
    chosen = brief.changed({"search.precision": precision})
    interrupt_after(chosen, digits, folder := RunFolder(tmp_path), 8)
    resumed = train(brief.changed({"search.precision": "auto"}), digits, device=CPU, console=console, folder=folder)
    assert resumed.recipe == chosen
    assert_equal(resumed, train(chosen, digits, device=CPU, console=console))


def test_a_finished_run_that_was_not_published_is_not_trained_again(
    brief: Recipe, digits: Data, console: Console, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    whole = train(brief, digits, device=CPU, console=console, folder=folder)
    written = (tmp_path / SNAPSHOT).read_bytes()
    assert_equal(train(brief, digits, device=CPU, console=console, folder=folder), whole)
    assert (tmp_path / SNAPSHOT).read_bytes() == written


def test_the_weights_are_those_of_the_best_epoch_and_the_snapshot_has_the_last(
    brief: Recipe, digits: Data, console: Console, tmp_path: Path
) -> None:
    # From the second epoch on the learning rate is far too high, and accuracy falls.
    recipe = brief.changed({"optimisation.learning_rate": 10.0, "optimisation.warm_up": 0.9, "optimisation.epochs": 4})
    trained = train(recipe, digits, device=CPU, console=console, folder=RunFolder(tmp_path))
    accuracies = [epoch.validation_accuracy for epoch in trained.history]
    assert trained.epoch < len(accuracies)
    assert trained.validation.accuracy == max(accuracies) == accuracies[trained.epoch - 1] > accuracies[-1]
    last = torch.load(tmp_path / SNAPSHOT, weights_only=True)["average"]
    assert not torch.equal(last["module.classify.weight"], trained.network.state_dict()["classify.weight"])


def test_a_run_cannot_be_resumed_with_another_recipe_or_other_data(
    brief: Recipe, digits: Data, console: Console, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path, 0.0)
    interrupt_after(brief, digits, folder, 2)
    with pytest.raises(
        TrainingError,
        match=r"different recipe: recipe.optimisation.epochs was 3, is 4; recipe.optimisation.seed was 0, is 1",
    ):
        train(
            brief.changed({"optimisation.epochs": 4, "optimisation.seed": 1}), digits, device=CPU, console=console, folder=folder
        )
    other = Data(digits.test, digits.validation, digits.test, digits.classes, digits.input)
    with pytest.raises(TrainingError, match=r"architecture.arguments.mean was \[.*\], is \["):
        train(brief, other, device=CPU, console=console, folder=folder)


def test_a_snapshot_is_never_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"epoch": Evil()}, tmp_path / SNAPSHOT)
    with pytest.raises(TrainingError, match="not a readable snapshot"):
        RunFolder(tmp_path).read_snapshot()
    assert not (tmp_path / "executed").exists()


def test_a_truncated_snapshot_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_snapshot({"epoch": 1})
    (tmp_path / SNAPSHOT).write_bytes((tmp_path / SNAPSHOT).read_bytes()[:100])
    with pytest.raises(TrainingError, match=f"{SNAPSHOT}: not a readable snapshot"):
        folder.read_snapshot()


def test_the_newest_run_can_be_resumed_if_it_is_unfinished(tmp_path: Path) -> None:
    assert last_run(tmp_path, "digits", 60) is None
    first = new_run(tmp_path, "digits", 60)
    assert first.path == tmp_path / "digits" / "1"
    assert last_run(tmp_path, "digits", 60) is None  # interrupted before its first snapshot
    first.write_snapshot({})
    found = last_run(tmp_path, "digits", 60)
    assert found is not None
    assert found.path == first.path
    first.mark_published(tmp_path / "store" / "digits" / "1")
    assert last_run(tmp_path, "digits", 60) is None
    assert new_run(tmp_path, "digits", 60).path == tmp_path / "digits" / "2"


def test_tensorboard_and_history_csv_have_every_epoch_once(brief: Recipe, digits: Data, console: Console, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, 0.0)
    interrupt_after(brief, digits, folder, 8)
    history = train(brief, digits, device=CPU, console=console, folder=folder).history
    with (tmp_path / "history.csv").open() as file:
        assert [float(row["train_loss"]) for row in csv.DictReader(file)] == [epoch.train_loss for epoch in history]
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = events.Scalars("accuracy/validation")
    assert [event.step for event in scalars] == [1, 2, 3]
    assert [event.value for event in scalars] == pytest.approx([epoch.validation_accuracy for epoch in history])
    assert {"loss/train", "loss/validation", "iterations/train", "learning_rate"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_and_resumed_publishes_the_same_bytes(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text("""
data: {source: sklearn/digits, test: 0.2}
network: {name: implicit_resnet, arguments: {channels: [8], pool: [2]}}
optimisation: {epochs: 10}
serving: {accelerate: false}
""")

    def publish(name: str, *, resume: bool) -> Path:
        train_command(
            str(recipe),
            store=tmp_path / name / "store",
            runs=tmp_path / name / "runs",
            device="cpu",
            resume=resume,
        )
        return tmp_path / name / "store" / "small" / "1"

    arguments = ["--store", tmp_path / "killed" / "store", "--runs", tmp_path / "killed" / "runs", "--snapshot-minutes", "0"]
    command = [sys.executable, "-m", "training", "train", recipe, "--device", "cpu", *arguments]
    snapshot = tmp_path / "killed" / "runs" / "small" / "1" / SNAPSHOT
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not snapshot.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    state = torch.load(snapshot, weights_only=True)
    assert state["epoch"] < 10, "killed too late to show anything"
    killed, whole = publish("killed", resume=True), publish("undisturbed", resume=False)
    assert not (tmp_path / "killed" / "runs" / "small" / "2").exists(), "the run was not resumed"
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    metrics = [json.loads((version / "metrics.json").read_text()) | {"seconds": 0} for version in (killed, whole)]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_processes_learn_the_same_as_one(digits: Data, tmp_path: Path) -> None:
    recipe = tmp_path / "uneven.yaml"
    # 51 inputs per batch, which two processes cannot halve; three batch normalisations.
    recipe.write_text("""
data: {source: sklearn/digits, test: 0.2, validation: 0.1}
network: {name: implicit_resnet, arguments: {channels: [16], pool: [2], blocks: 1}}
optimisation: {epochs: 2, batch_size: 51, averaging: 0.9}
augment: {rotate: 8, shift: 0.06, scale: 0.06}
serving: {accelerate: false}
""")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*launch, "-m", "training", "train", str(recipe)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "JFB_MODEL_STORE": str(tmp_path / "store"),
            "JFB_RUNS": str(tmp_path / "runs"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("epoch 2: ") == 1
    assert "Warning" not in finished.stderr
    assert [path.name for path in (tmp_path / "store" / "uneven").iterdir()] == ["1"]

    alone = train(load_recipe(str(recipe)), digits, device=CPU, console=Console(quiet=True))
    with (tmp_path / "store" / "uneven" / "1" / "history.csv").open() as file:
        losses = [float(epoch["train_loss"]) for epoch in csv.DictReader(file)]
    assert losses == pytest.approx([epoch.train_loss for epoch in alone.history], rel=1e-4)
    together = load_file(tmp_path / "store" / "uneven" / "1" / "model.safetensors")
    for name, tensor in alone.network.state_dict().items():
        difference = float((together[name] - tensor).abs().max())
        assert difference <= 1e-3 * float(tensor.abs().max()), name
