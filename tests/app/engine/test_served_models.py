"""ServedModels: what is served of a store that changes, or that holds what no model should."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from app.engine.loading import LoadedVersion, Loader, _max_rows
from app.engine.served_models import ServedModels
from app.engine_client import messages
from app.settings import EngineConfig
from jfb import Checkpoint, checkpoint
from jfb.store import new_version
from tests.app.store import DIGITS, network_of


@dataclass(frozen=True)
class ObservedLoader(Loader):
    """Loads as the engine does, and first lets something happen to the store."""

    before: Callable[[str], None]

    def _load(self, model: str, version: int, fingerprint: str) -> LoadedVersion:
        self.before(model)
        return super()._load(model, version, fingerprint)


def publish(store: Path, model: str, seed: int) -> None:
    with new_version(store, model) as folder:
        checkpoint.save(folder, DIGITS, network_of(DIGITS, seed))


def served_models(store: Path, before: Callable[[str], None] = lambda _: None, load_seconds: float = 60) -> ServedModels:
    settings = {"device": "cpu", "slots": 2, "backend": "torch", "precision": "float32", "load_seconds": load_seconds}
    config = EngineConfig.model_validate({"model_store": store, **settings})
    files = store.parent / "unloaded.json", store.parent / "loading.json"
    return ServedModels(ObservedLoader(config, torch.device("cpu"), before), *files)


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


def break_store(store: Path) -> None:
    """Put next to a good model what must not be served, and must not keep it from being served."""
    for name in ("dangling", "looping", "pipe", "weights", "socket", "long", "surrogate"):
        shutil.copytree(store / "digits" / "1", store / name / "1")
    for name, target in (("dangling", "nowhere"), ("looping", "config.json")):
        config = store / name / "1" / "config.json"
        config.unlink()
        config.symlink_to(config.parent / target)
    for name, file in (("pipe", "config.json"), ("weights", "model.safetensors"), ("digits", "metrics.json")):
        (store / name / "1" / file).unlink(missing_ok=True)
        os.mkfifo(store / name / "1" / file)
    (store / "socket" / "1" / "config.json").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(store / "socket" / "1" / "config.json"))  # absolute, it may be too long
    (store / "long" / "1" / "config.json").write_text(json.dumps({"format_version": "x" * 10**5}))
    (store / "surrogate" / "1" / os.fsdecode(b"\xff.json")).touch()
    (store / "digits" / ("1" * 20)).mkdir()
    (store / os.fsdecode(b"\xff") / "1").mkdir(parents=True)
    for number, target in (("2", "nowhere"), ("3", "3")):
        (store / "digits" / number).symlink_to(store / "digits" / target)


@pytest.mark.parametrize("at_start", [True, False])
def test_a_version_that_cannot_be_read_costs_itself_only(tmp_path: Path, at_start: bool) -> None:
    store = tmp_path / "store"
    publish(store, "digits", 1)
    models = served_models(store)
    if at_start:
        break_store(store)
        models.load_all()
    else:
        models.load_all()
        break_store(store)
        models.apply(models.find_changes(None))
    assert served(models) == [("digits", 1), ("surrogate", 1)]
    refused = {str(one.version): one.reason for one in models.state().refused}
    assert sorted(refused) == ["dangling/1", "long/1", "looping/1", "pipe/1", "socket/1", "weights/1"]
    assert "No such file" in refused["dangling/1"]
    assert "Too many levels" in refused["looping/1"]
    for name in ("pipe/1", "weights/1"):
        assert "must be a regular file" in refused[name]
    assert "No such device or address" in refused["socket/1"]
    assert len(refused["long/1"]) == 1000
    assert len(messages.encode([models.state()])) < 10**5, "it can be sent to the HTTP workers"


@pytest.mark.slow
def test_a_version_that_takes_too_long_is_refused_and_its_thread_ends(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for model in ("endless", "digits"):
        publish(store, model, 1)
    ended = threading.Event()

    def hang(model: str) -> None:
        try:
            while model == "endless":
                with suppress(Exception):  # as where a backend is tried that may fail
                    time.sleep(0.01)
        finally:
            if model == "endless":
                ended.set()

    models = served_models(store, hang, load_seconds=2.0)
    models.load_all()
    assert served(models) == [("digits", 1)]
    assert [one.reason for one in models.state().refused] == ["loading: must take at most 2 s (--load-seconds)"]
    assert ended.wait(10)


def test_a_version_that_ends_the_engine_twice_is_refused_until_it_changes_or_is_requested(tmp_path: Path) -> None:
    store, loading = tmp_path / "store", tmp_path / "loading.json"
    for model in ("deadly", "digits"):
        publish(store, model, 1)
    left = [""]  # what is on disk when the process ends while it loads the version

    def die(model: str) -> None:
        if model == "deadly":
            left[0] = loading.read_text()

    for _ in range(2):
        models = served_models(store, die)
        models.load_all()
        assert served(models) == [("deadly", 1), ("digits", 1)], "an engine may also have ended for another reason"
        loading.write_text(left[0])
    models = served_models(store, die)
    models.load_all()
    assert served(models) == [("digits", 1)]
    reason = "the engine exited 2 times in a row while it loaded this version"
    assert [one.reason for one in models.state().refused] == [reason]
    again = served_models(store, die)
    again.load_all()
    assert served(again) == [("digits", 1)], "also the next engine knows"
    models.apply(models.find_changes("deadly"))
    assert served(models) == [("deadly", 1), ("digits", 1)]
    assert json.loads(loading.read_text()) == {}


def test_a_full_temporary_folder_ends_no_engine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    publish(store, "digits", 1)
    config = EngineConfig(model_store=store, device="cpu", slots=2, backend="torch", precision="float32")
    nowhere = tmp_path / "nowhere"  # as little can be written there as on a full disk
    models = ServedModels(Loader(config, torch.device("cpu")), nowhere / "unloaded.json", nowhere / "loading.json")
    models.load_all()
    assert served(models) == [("digits", 1)]
    assert models.unload("digits")
    assert served(models) == []
    assert "file not written" in capfd.readouterr().out


def test_a_model_whose_rows_are_large_is_tried_with_few_of_them(tmp_path: Path) -> None:
    wide = DIGITS.model_copy(update={"input": DIGITS.input.model_copy(update={"shape": (1, 1024, 1024)})})
    wide = wide.model_copy(
        update={"architecture": wide.architecture.model_copy(update={"arguments": {"channels": [2], "average": True}})}
    )
    found = Checkpoint(wide, network_of(wide, 1).eval())
    assert _max_rows(found, torch.device("cpu")) == 128
    assert _max_rows(Checkpoint(DIGITS, network_of(DIGITS, 1).eval()), torch.device("cpu")) >= 2**20


def test_aliases_that_cannot_be_read_leave_those_of_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    publish(store, "digits", 1)
    file = store / "digits" / "aliases.json"
    file.write_text('{"stable": 1}')
    models = served_models(store)
    models.load_all()
    assert models.state().aliases == {"digits": {"stable": 1}}
    for content in ('{"1": 1}', "{", "{"):
        file.write_text(content)
        assert not models.apply(models.find_changes(None))
        assert models.state().aliases == {"digits": {"stable": 1}}
    assert capsys.readouterr().out.count("aliases not read") == 2, "not again for the same content"
    file.write_text('{"canary": 1}')
    assert models.apply(models.find_changes(None))
    assert models.state().aliases == {"digits": {"canary": 1}}
    shutil.rmtree(store / "digits")
    models.apply(models.find_changes(None))
    assert models.state().aliases == {}
