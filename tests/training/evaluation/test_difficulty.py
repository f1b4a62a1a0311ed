"""Evaluation by difficulty: which inputs count as how hard, and what the files say."""

import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from jfb import ModelConfig
from jfb.architectures import build
from jfb.config import ArchitectureSpec, Serving
from jfb.store import CONFIG
from training.data import Split, load_evaluation_data
from training.evaluation.difficulty import BINS, by_difficulty, by_width
from training.evaluation.evaluate import evaluate
from training.evaluation.trajectories import Trajectories
from training.recipe import load_recipe
from training.reports.evaluation_report import write_evaluation_report
from training.reports.model_card import write_card

CPU = torch.device("cpu")


def part(difficulty: list[int], right_after: list[int]) -> tuple[Trajectories, Split]:
    """Inputs of class 0 that are answered rightly from some iteration on, and whose residual is then below 0.1."""
    rows, iterations = len(difficulty), 10
    right = torch.arange(1, iterations + 1) >= torch.tensor(right_after)[:, None]
    split = Split(torch.zeros(rows, 1), torch.zeros(rows, dtype=torch.int64), {"depth": torch.tensor(difficulty)})
    wrong = (~right).long()
    return Trajectories(torch.where(right, 0.05, 0.5), wrong, wrong[:, 0]), split


def test_each_range_has_its_own_accuracy_and_iterations() -> None:
    found = by_difficulty(*part([1, 1, 2, 9], [2, 4, 5, 10]), (1.0, 0.1), 7)
    by_range = {(outcome.low, outcome.high, outcome.tolerance): outcome for outcome in found}
    easy = by_range[1, 1, 0.1]
    assert (easy.measure, easy.inputs, easy.accuracy, easy.iterations) == ("depth", 2, 1.0, 3.0)
    hard = by_range[9, 9, 0.1]
    assert (hard.inputs, hard.accuracy, hard.iterations) == (1, 0.0, 7.0), "the cap comes before its answer"
    assert by_range[2, 2, 1.0].accuracy == 0.0
    assert by_range[2, 2, 1.0].iterations == 1.0


def test_the_ranges_hold_every_input_once_and_about_equally_many() -> None:
    difficulty = [2 * k for k in range(1, 31) for _ in range(k)]
    found = by_difficulty(*part(difficulty, [1] * len(difficulty)), (0.1,), 10)
    assert len(found) == BINS
    assert sum(outcome.inputs for outcome in found) == len(difficulty)
    assert all(one.high < other.low for one, other in pairwise(found))
    assert max(outcome.inputs for outcome in found) < 2 * min(outcome.inputs for outcome in found)


@pytest.mark.slow
def test_an_evaluation_writes_a_table_and_a_picture_for_data_that_has_difficulties(tmp_path: Path, console: Console) -> None:
    recipe = load_recipe("mazes").changed(
        {
            "data.arguments": {"size": 4, "train": 60, "test": 90},
            "generalisation": [{"arguments": {"size": 5, "train": 60, "test": 30}}],
        }
    )
    data = load_evaluation_data(recipe, console)
    torch.manual_seed(0)
    arguments = {"channels": 4, "features": 5}
    network = build("max_propagation", data.input.shape, 4, arguments).eval()
    config = ModelConfig(
        architecture=ArchitectureSpec(name="max_propagation", arguments=arguments),
        input=data.input,
        classes=data.classes,
        serving=Serving(max_iterations=30),
    )
    evaluation = evaluate(network, config, data, device=CPU, console=console, tolerances=(0.1, 1e-3), caps=(1,))
    (tmp_path / CONFIG).write_text(config.model_dump_json())
    write_evaluation_report(tmp_path, "small", evaluation)
    write_card(tmp_path, "small")
    rows = list(csv.DictReader((tmp_path / "difficulty.csv").read_text().splitlines()))
    for measure in ("path_length", "flood_depth"):
        assert sum(int(row["inputs"]) for row in rows if (row["measure"], row["tolerance"]) == (measure, "0.1")) == 90
    widths = [
        (row["low"], row["high"], row["inputs"]) for row in rows if (row["measure"], row["tolerance"]) == ("image_width", "0.1")
    ]
    assert widths == [("7", "7", "90"), ("9", "9", "30")]
    # Of all ranges together, accuracy and iterations are those of the part.
    overall = next(o for o in evaluation.outcomes if (o.label, o.tolerance, o.max_iterations) == (None, 0.1, 30))
    chosen = [o for o in evaluation.difficulty if (o.measure, o.tolerance) == ("flood_depth", 0.1)]
    assert sum(o.accuracy * o.inputs for o in chosen) / 90 == pytest.approx(overall.accuracy)
    assert sum(o.iterations * o.inputs for o in chosen) / 90 == pytest.approx(overall.iterations)
    assert len(json.loads((tmp_path / "evaluation.json").read_text())["difficulty"]) == len(rows)
    with Image.open(tmp_path / "difficulty.png") as picture:
        assert min(picture.size) > 500
    card = (tmp_path / "README.md").read_text()
    assert "## Easy and hard inputs" in card
    assert "| path length | inputs | 0.1 | 0.001 |" in card
    assert "| image width | inputs | 0.1 | 0.001 |" in card
    assert "| 9 | 30 | " in card


def test_parts_of_other_sizes_are_compared_by_the_width_of_their_images() -> None:
    (part_of_3, small), (part_of_5, large) = part([1, 1], [2, 4]), part([1, 2, 3], [3, 3, 10])
    sized = [
        (part_of_3, replace(small, inputs=torch.zeros(2, 1, 3, 3))),
        (part_of_5, replace(large, inputs=torch.zeros(3, 1, 5, 5))),
    ]
    found = {
        (outcome.measure, outcome.low, outcome.high, outcome.tolerance): outcome for outcome in by_width(sized, (1.0, 0.1), 9)
    }
    assert list(found) == [("image_width", width, width, tolerance) for width in (3, 5) for tolerance in (1.0, 0.1)]
    assert [found["image_width", width, width, 0.1].inputs for width in (3, 5)] == [2, 3]
    assert found["image_width", 3, 3, 0.1].accuracy == 1
    assert found["image_width", 5, 5, 0.1].accuracy == pytest.approx(2 / 3), "the cap comes before the answer of the third"
    assert found["image_width", 5, 5, 0.1].iterations == 5


def test_data_without_difficulties_has_no_such_table() -> None:
    trajectories, split = part([1, 2], [1, 2])
    assert by_difficulty(trajectories, Split(split.inputs, split.labels), (0.1,), 10) == []
