"""``python -m training accelerate``: a new version, with the same weights and another solver."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import jfb
from jfb.architectures import build
from jfb.checkpoint import save
from jfb.config import ArchitectureSpec, InputSpec, ModelConfig
from training.__main__ import main
from training.acceleration import accelerate, fit, start
from training.errors import RecipeError
from training.evaluation import solver_times
from training.evaluation.solver_times import SolverTimes, time_solvers
from training.recipe import load_recipe

pytestmark = pytest.mark.slow


def model(store: Path, name: str = "digits") -> Path:
    """An untrained model of digits, as if it had been trained here."""
    torch.manual_seed(0)
    arguments = {"channels": [4], "pool": [4], "mean": 5.0, "std": 6.0}
    config = ModelConfig(
        architecture=ArchitectureSpec(name="implicit_resnet", arguments=arguments),
        input=InputSpec(shape=(1, 8, 8), kind="image", low=0, high=16),
        classes=[str(digit) for digit in range(10)],
        provenance={"recipe": load_recipe("digits").model_dump(mode="json", exclude_none=True)},
    )
    folder = store / name / "1"
    folder.mkdir(parents=True)
    save(folder, config, build("implicit_resnet", (1, 8, 8), 10, arguments).eval())
    (folder / "samples.json").write_text("[]")
    (folder / "model.onnx").write_text("an export with the solver of before")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def recommending(solver: str, monkeypatch: pytest.MonkeyPatch, start_ratio: float = 1.0) -> None:
    """Fit for a short time and decide so, whatever is faster."""

    def times(*arguments: object, **keywords: object) -> SolverTimes:
        found = time_solvers(*arguments, **keywords)  # type: ignore[arg-type]
        ratio = None if found.start_ratio is None else start_ratio
        return SolverTimes(**{**vars(found), "recommended": solver, "start_ratio": ratio})

    monkeypatch.setattr(accelerate, "time_solvers", times)
    monkeypatch.setattr(solver_times, "ROUNDS", solver_times.MIN_ROUNDS)
    monkeypatch.setattr(solver_times, "INPUTS", 64)
    monkeypatch.setattr(fit, "STEPS", 20)
    monkeypatch.setattr(start, "MAX_STEPS", 20)


def test_the_new_version_has_the_same_weights_and_the_faster_solver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model(tmp_path)
    recommending("mixing", monkeypatch, start_ratio=0.8)
    assert run(monkeypatch, "accelerate", "digits", "--start", "--store", str(tmp_path)) == 0
    after = tmp_path / "digits" / "2"
    printed = capsys.readouterr().out
    assert f"mixing is now the default solver: {after}" in printed
    assert "picard without start (default before)" in printed
    assert "with the learned start inputs take 0.80 of their time without it" in printed

    old, new = jfb.load(before), jfb.load(after)
    one, two = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {name.split(".")[0] for name in two.keys() - one.keys()} == {"learned_start"}
    assert new.network.learned_start is not None
    assert new.mixing is not None
    assert new.solver is new.mixing
    unchanged = {"solver": "picard", "label_calibration": None}
    assert new.config.serving.model_copy(update=unchanged) == old.config.serving
    assert new.config.provenance["accelerated"]["version"] == "digits/1"
    assert not (after / "model.onnx").exists(), "it has the old solver"
    assert (after / "samples.json").exists()
    report = json.loads((after / "evaluation.json").read_text())
    assert report["serving"]["solver"] == "mixing"
    assert report["solver_times"]["iterations_at"].keys() == {
        name + suffix for name in ("mixing", "picard", "anderson") for suffix in ("", " without start")
    }
    assert [row["iterations"] for row in report["anytime"]] == [0, 1, 2, 3, 5, 8]
    card = (after / "README.md").read_text()
    assert "| tolerance | solver | mean iterations | slowest input | microseconds per input |" in card
    assert "mixing (default)" in card
    assert "| iterations | 0 | 1 | 2 | 3 | 5 | 8 |" in card
    assert "0 is the readout of the learned start" in card


def test_it_is_not_made_the_default_where_it_is_not_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model(tmp_path)
    recommending("picard", monkeypatch, start_ratio=0.98)
    assert run(monkeypatch, "accelerate", "digits", "--start", "--store", str(tmp_path)) == 0
    new = jfb.load(tmp_path / "digits" / "2")
    assert new.config.serving.solver == "picard"
    assert list(new.solvers) == ["picard", "anderson", "mixing"]
    assert new.network.learned_start is None
    assert new.config.learned_start is None
    printed = capsys.readouterr().out
    assert "the default solver is still picard" in printed
    assert "take 0.98 of their time without it, so it was left out: it must be at most 0.97" in printed


def test_a_monotone_network_is_rejected_with_the_reason_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model(tmp_path)
    arguments = {"channels": [4], "pool": [2], "mean": 5.0, "std": 6.0}
    config = jfb.load(folder).config.model_copy(
        update={"architecture": ArchitectureSpec(name="monotone_conv", arguments=arguments)}
    )
    save(folder, config, build("monotone_conv", (1, 8, 8), 10, arguments).eval())
    assert run(monkeypatch, "accelerate", "digits", "--store", str(tmp_path)) == 1
    assert "mixing is not for monotone networks" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1"]


def test_train_accelerates_at_the_end_unless_the_recipe_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recommending("mixing", monkeypatch)
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(
        "data: {source: sklearn/digits, test: 0.2}\n"
        "network: {name: implicit_resnet, arguments: {channels: [4], pool: [4]}}\n"
        "search: {max_iterations: 10}\n"
        "optimisation: {epochs: 1}\n"
    )
    assert run(monkeypatch, "train", str(recipe), "--store", str(tmp_path), "--runs", str(tmp_path / "runs")) == 0
    found = jfb.load(tmp_path / "quick" / "1")
    assert found.solver is found.mixing
    assert "accelerate" not in json.loads((tmp_path / "quick" / "1" / "config.json").read_text())["serving"]


def test_a_recipe_cannot_name_a_solver_that_is_not_fitted_yet() -> None:
    for section in ("search", "serving"):
        with pytest.raises(RecipeError, match=f"{section}.solver: mixing is fitted after training: set serving.accelerate"):
            load_recipe("digits").changed({f"{section}.solver": "mixing"})
