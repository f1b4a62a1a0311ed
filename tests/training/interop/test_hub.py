"""Hub: what is saved loads again, and its card describes it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

import jfb
from jfb import Checkpoint, CheckpointError, ModelConfig, from_pretrained, predict
from jfb.architectures import build
from jfb.config import ArchitectureSpec, InputSpec
from jfb.solvers import Mixing
from jfb.store import list_models
from tests.disk import full_disk
from training.__main__ import main
from training.commands.train import train
from training.interop.hub import import_from_hub, save_pretrained
from training.recipe import Recipe
from training.reports.model_card import write_card


def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=ArchitectureSpec(name="implicit_mlp", arguments={"width": 8}),
        input=InputSpec(shape=(4,), kind="vector"),
        classes=["apple", "pear", "plum"],
    )
    return Checkpoint(config, build("implicit_mlp", (4,), 3, {"width": 8}).eval())


def metadata(card: str) -> dict[str, object]:
    """What the hub reads at the top of a card."""
    found = yaml.safe_load(card.split("---")[1])
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version as ``python -m training train`` publishes it."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "digits.yaml").write_text("""
data: {source: sklearn/digits, test: 0.2}
network: {name: implicit_resnet, arguments: {channels: [8], pool: [2]}}
optimisation: {epochs: 1}
license: cc-by-4.0
""")
    train(str(folder / "digits.yaml"), store=folder / "store", runs=folder / "runs", device="cpu")
    return folder / "store" / "digits" / "1"


def test_what_is_saved_answers_the_same_when_it_is_loaded_again_and_can_be_served(tmp_path: Path) -> None:
    saved = checkpoint()
    save_pretrained(saved, tmp_path / "store" / "fruit" / "1", name="fruit")
    loaded = from_pretrained(tmp_path / "store" / "fruit" / "1")
    assert loaded.config == saved.config
    weights = loaded.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in saved.network.state_dict().items())
    inputs = torch.randn(9, 4)
    one, two = (predict(each.network, inputs, tolerance=1e-4, max_iterations=50) for each in (saved, loaded))
    torch.testing.assert_close(one.logits, two.logits)  # where in memory the weights lie decides how sums are rounded
    assert list_models(tmp_path / "store") == {"fruit": [1]}
    card = (tmp_path / "store" / "fruit" / "1" / "README.md").read_text()
    assert "# fruit" in card
    assert "none is stated" in card, "a licence is not invented"
    assert "license" not in metadata(card)


def test_a_learned_solver_is_saved_with_its_model(tmp_path: Path) -> None:
    saved = checkpoint()
    width = saved.network.initial_state(saved.network.inject(torch.zeros(1, 4))).shape[1]
    mixing = Mixing(1.3 * torch.eye(width), torch.full((width,), 0.1), 0.9)
    serving = saved.config.serving.model_copy(update={"solver": "mixing"})
    save_pretrained(Checkpoint(saved.config.model_copy(update={"serving": serving}), saved.network, mixing), tmp_path / "fruit")
    loaded = from_pretrained(tmp_path / "fruit")
    assert loaded.mixing is not None
    assert torch.equal(loaded.mixing.matrix, mixing.matrix)
    assert loaded.config.serving.solver == "mixing"


@pytest.mark.slow
def test_the_card_of_a_trained_model_states_data_accuracy_tolerances_and_licence(published: Path) -> None:
    card = (published / "README.md").read_text()
    metrics = json.loads((published / "metrics.json").read_text())
    evaluation = json.loads((published / "evaluation.json").read_text())
    assert metadata(card)["license"] == "cc-by-4.0"
    assert "Licence: cc-by-4.0" in card
    assert "`sklearn/digits`" in card
    assert f"| accuracy | {metrics['accuracy']:.2%} |" in card
    for outcome in evaluation["outcomes"]:
        if outcome["max_iterations"] == evaluation["serving"]["max_iterations"]:
            assert f"| {outcome['tolerance']:g} | {outcome['accuracy']:.2%} | {outcome['iterations']:.1f} |" in card
    assert f"**{evaluation['recommended_tolerance']:g}**" in card


@pytest.mark.slow
def test_the_cards_recipe_can_be_trained_again(published: Path) -> None:
    text = (published / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert Recipe.model_validate(yaml.safe_load(text)) == Recipe.model_validate(jfb.load(published).config.provenance["recipe"])


@pytest.mark.slow
def test_a_card_shows_only_what_is_in_the_folder(published: Path, tmp_path: Path) -> None:
    for name in ("config.json", "curves.png"):
        shutil.copy(published / name, tmp_path)
    write_card(tmp_path, "part")
    card = (tmp_path / "README.md").read_text()
    assert "curves.png" in card
    assert "evaluation.png" not in card
    assert "| accuracy |" not in card
    assert "What a tolerance costs" not in card


@pytest.mark.slow
def test_a_folder_as_the_hub_gives_it_becomes_the_next_version_with_all_its_files(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "snapshot")
    (tmp_path / "snapshot" / "run.py").write_text("raise SystemExit")
    for expected in ("1", "2"):
        folder = import_from_hub(str(tmp_path / "snapshot"), tmp_path / "store", "digits")
        assert folder == tmp_path / "store" / "digits" / expected
    assert {path.name for path in folder.iterdir()} == {path.name for path in published.iterdir()}, "and nothing else"
    assert (folder / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_folder_that_is_not_a_model_is_rejected_and_leaves_nothing_in_the_store(published: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    shutil.copy(published / "config.json", tmp_path / "snapshot")
    (tmp_path / "snapshot" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a readable safetensors file"):
        from_pretrained(tmp_path / "snapshot")
    with pytest.raises(CheckpointError, match="safetensors"):
        import_from_hub(str(tmp_path / "snapshot"), tmp_path / "store", "digits")
    assert not (tmp_path / "store").exists()


def test_a_model_that_does_not_fit_on_the_disk_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pretrained(checkpoint(), tmp_path / "fruit", name="fruit")
    monkeypatch.setattr(sys, "argv", ["training", "import", "hub", str(tmp_path / "fruit"), "--store", str(tmp_path / "store")])
    with full_disk(500), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    line = f"error: {tmp_path}/store/fruit: no version was written, and the store is as it was: File too large\n"
    assert capsys.readouterr().err == line
    assert list((tmp_path / "store" / "fruit").iterdir()) == []
