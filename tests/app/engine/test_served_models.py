"""ServedModels: what is served of a store that changes, or that holds what no model should."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from app.engine.loading import LoadedVersion, Loader
from app.engine.served_models import ServedModels
from app.settings import EngineConfig
from jfb import checkpoint
from jfb.store import new_version
from tests.app.store import DIGITS, network_of


@dataclass(frozen=True)
class ObservedLoader(Loader):
    """Loads as the engine does, and first lets something happen to the store."""

    before: Callable[[str], None]

    def load(self, model: str, version: int, fingerprint: str) -> LoadedVersion:
        self.before(model)
        return super().load(model, version, fingerprint)


def publish(store: Path, model: str, seed: int) -> None:
    with new_version(store, model) as folder:
        checkpoint.save(folder, DIGITS, network_of(DIGITS, seed))


def served_models(store: Path, before: Callable[[str], None] = lambda _: None) -> ServedModels:
    config = EngineConfig(model_store=store, device="cpu", slots=2, backend="torch", precision="float32")
    return ServedModels(ObservedLoader(config, torch.device("cpu"), before), store.parent / "unloaded.json")


def served(models: ServedModels) -> list[tuple[str, int]]:
    return [(one.model, one.version) for one in models.state().served]


def test_a_version_that_is_replaced_while_the_engine_starts_leaves_no_gap(tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish(store, "a", 1)
    publish(store, "digits", 2)

    def replace(model: str) -> None:
        if model == "a" and (store / "digits" / "1").exists():  # the store has been listed, and its first model is being read
            publish(store, "digits", 3)
            shutil.rmtree(store / "digits" / "1")

    models = served_models(store, replace)
    models.load_all()
    assert served(models) == [("a", 1), ("digits", 2)]
    assert models.state().refused == []


@pytest.mark.parametrize("name", ["..", "../beside", ".hidden", "a" * 256, "a" * 5000])
def test_names_that_lead_out_of_the_store_are_no_models(tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"
    publish(store, "digits", 1)
    publish(tmp_path, "beside", 1)
    shutil.copytree(store / "digits", store / ".hidden")
    changes = served_models(store).find_changes(name)
    assert changes.present == frozenset()
    assert changes.loaded == {}


def test_a_version_that_cannot_be_read_costs_itself_only(tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish(store, "digits", 1)
    for name in ("dangling", "looping", "pipe", "weights"):
        shutil.copytree(store / "digits", store / name)
    for name, target in (("dangling", "nowhere"), ("looping", "config.json")):
        config = store / name / "1" / "config.json"
        config.unlink()
        config.symlink_to(config.parent / target)
    for name, file in (("pipe", "config.json"), ("weights", "model.safetensors")):
        (store / name / "1" / file).unlink()
        os.mkfifo(store / name / "1" / file)
    (store / "digits" / ("1" * 20)).mkdir()
    (store / os.fsdecode(b"\xff") / "1").mkdir(parents=True)
    models = served_models(store)
    models.load_all()
    assert served(models) == [("digits", 1)]
    refused = {str(one.version): one.reason for one in models.state().refused}
    assert sorted(refused) == ["dangling/1", "looping/1", "pipe/1", "weights/1"]
    assert "No such file" in refused["dangling/1"]
    assert "Too many levels" in refused["looping/1"]
    assert "must be a regular file" in refused["pipe/1"]
    assert "must be a regular file" in refused["weights/1"]
