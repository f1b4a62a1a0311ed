"""ServedModels: which versions are served, and how one takes the place of another."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch

from app.engine.loading import LoadedVersion, Loader, fingerprint
from app.engine.scheduler import Scheduler
from app.engine_client.messages import Counters, Refusal, State
from jfb.store import CheckpointError, ModelVersion, is_model_name, list_models, list_versions, read_aliases

MAX_LOAD_STARTS = 2  # of a version, each of which ended the engine, before it is refused
MAX_REASON_CHARACTERS = 1000  # of a refusal, which may repeat what is in a file
log = structlog.get_logger(__name__)

Key = tuple[str, int]  # name and version


@dataclass(frozen=True)
class RefusedVersion:
    """A version that could not be loaded; it is tried again when its folder has changed, or a client loads its model."""

    fingerprint: str
    reason: str


@dataclass(frozen=True)
class Changes:
    """What was found in the store, and has not taken effect."""

    models: frozenset[str]  # those that were scanned
    present: frozenset[Key]  # the versions of those that the store holds
    loaded: dict[Key, LoadedVersion] = field(default_factory=dict)
    refused: dict[Key, RefusedVersion] = field(default_factory=dict)
    aliases: dict[str, dict[str, int]] = field(default_factory=dict)


class ServedModels:
    """Serves what the store holds, except what cannot be loaded and what a client has unloaded.

    A change has two halves. ``find_changes`` reads, loads and tries out, for as long as it takes; it may run in another
    thread while the schedulers tick. ``apply`` exchanges schedulers between two ticks, in no time: from then on new requests go
    to the new one, while the one that it replaces finishes what it has, and goes. So no request is dropped, and as every version
    has a scheduler of its own, no batch mixes two of them.

    Args:
        unloaded_file: keeps the names of the unloaded models, so that a restart does not load them.
        loading_file: keeps which versions are being loaded, so that a restart does not load one for ever that ends the engine.

    Attributes:
        schedulers: by model, version and fingerprint, and also with None for any fingerprint.
        running: all that may have requests, also those that
        draining: have been replaced and finish their last.
    """

    def __init__(self, loader: Loader, unloaded_file: Path, loading_file: Path) -> None:
        self._loader = loader
        self._unloaded_file, self._loading_file = unloaded_file, loading_file
        self._unloaded: set[str] = set(_read_json(unloaded_file, []))
        self._loading: dict[str, tuple[str, int]] = _read_json(loading_file, {})  # fingerprint, and how often it was started
        self._versions: dict[Key, LoadedVersion] = {}
        self._refused: dict[Key, RefusedVersion] = {}
        self._aliases: dict[str, dict[str, int]] = {}
        self._unreadable_aliases: dict[str, str] = {}  # by model, why
        for text, (mark, starts) in self._loading.items():
            if starts >= MAX_LOAD_STARTS:
                version = ModelVersion.parse(text)
                reason = f"the engine exited {starts} times in a row while it loaded this version"
                self._refused[version.name, version.number] = RefusedVersion(mark, reason)
        self.draining: list[Scheduler] = []
        self._renew()

    def state(self) -> State:
        """What is served, and what it has done."""
        names = Counters.__struct_fields__[2:]
        counters = [Counters(*key, *(getattr(one.scheduler, name) for name in names)) for key, one in self._versions.items()]
        served = [self._versions[key].served for key in sorted(self._versions)]
        return State(served, refusals(self._refused), counters, sorted(self._unloaded), self._aliases)

    def load_all(self) -> None:
        """Serve what the store holds now."""
        self.apply(self.find_changes(None))
        while not all(version in list_versions(self._loader.config.model_store / name) for name, version in self._refused):
            self.apply(self.find_changes(None))  # one that was removed in the meantime may have been replaced

    def find_changes(self, model: str | None) -> Changes:
        """Load what the store holds and is not served yet. Changes nothing here, so it may run in another thread.

        Of one model, versions that were refused before are tried again. Without ``model`` all models are scanned except the
        unloaded ones, and versions are left alone that are as they were when they were refused.
        """
        store = self._loader.config.model_store
        found = list_models(store) if model is None else {model: list_versions(store / model) if is_model_name(model) else []}
        versions, refused = dict(self._versions), dict(self._refused)
        models = frozenset({model} if model is not None else {*found, *(name for name, _ in (*versions, *refused))})
        present = frozenset((name, version) for name, numbers in found.items() for version in numbers)
        aliases = {name: self._read_aliases(store / name) for name, numbers in found.items() if numbers}
        changes = Changes(models, present, aliases=aliases)
        for name, version in sorted(present):
            key, mark = (name, version), ""
            if model is None and name in self._unloaded:
                continue
            try:
                mark = fingerprint(store / name / str(version))
                if key in versions and versions[key].served.fingerprint == mark:
                    continue
                if key in refused and refused[key].fingerprint == mark and model is None:
                    changes.refused[key] = refused[key]
                else:
                    with self._noted(ModelVersion(name, version), mark):
                        changes.loaded[key] = self._loader.load(name, version, mark)
            except torch.AcceleratorError:  # the device is lost, not the model broken
                raise
            except Exception as error:  # whatever a model does, it must not take the others down
                reason = (str(error) or type(error).__name__).encode(errors="backslashreplace").decode()[:MAX_REASON_CHARACTERS]
                changes.refused[key] = RefusedVersion(mark, reason)
                if model is not None or refused.get(key) != changes.refused[key]:  # not again at every look at a broken folder
                    log.error("model refused", model=name, version=version, reason=reason, still_served=key in versions)
        return changes

    def apply(self, changes: Changes) -> bool:
        """Let changes take effect, between two ticks; return whether any did. What was unloaded in the meantime stays so."""
        before = dict(self._versions), self._refused, self._aliases
        for key in [key for key in self._versions if key[0] in changes.models and key not in changes.present]:
            self._retire(key, "removed from the store")
        for key, new in changes.loaded.items():
            if key[0] in self._unloaded:
                continue
            if key in self._versions:
                self._retire(key, "replaced in the store")
            self._versions[key] = new
            log.info("model loaded", model=key[0], version=key[1], device=str(self._loader.device))
        self._refused = {key: refusal for key, refusal in before[1].items() if key[0] not in changes.models}
        self._refused |= {key: refusal for key, refusal in changes.refused.items() if key[0] not in self._unloaded}
        self._renew()
        self._aliases = {name: aliases for name, aliases in self._aliases.items() if name not in changes.models} | changes.aliases
        return before != (self._versions, self._refused, self._aliases)

    def _read_aliases(self, model: Path) -> dict[str, int]:
        """The aliases of a model in the store; those of before if they cannot be read."""
        try:
            aliases = read_aliases(model)
        except CheckpointError as error:
            reason = str(error).encode(errors="backslashreplace").decode()[:MAX_REASON_CHARACTERS]
            if self._unreadable_aliases.get(model.name) != reason:  # not again at every look
                log.error("aliases not read, previous aliases kept", model=model.name, reason=reason)
            self._unreadable_aliases[model.name] = reason
            return self._aliases.get(model.name, {})
        self._unreadable_aliases.pop(model.name, None)
        return aliases

    def allow(self, model: str) -> None:
        """Let a model be loaded again that was unloaded."""
        if model in self._unloaded:
            self._set_unloaded(self._unloaded - {model})

    def unload(self, model: str) -> bool:
        """Serve no version of a model any more; return whether one was served or refused."""
        known = any(name == model for name, _ in (*self._versions, *self._refused))
        for key in [key for key in self._versions if key[0] == model]:
            self._retire(key, "requested")
        self._refused = {key: refusal for key, refusal in self._refused.items() if key[0] != model}
        self._renew()
        if known:
            self._set_unloaded(self._unloaded | {model})
        return known

    def drop_drained(self) -> None:
        """Forget the replaced schedulers that have finished."""
        self.draining = [scheduler for scheduler in self.draining if scheduler.busy]
        self._renew()

    def _renew(self) -> None:
        self.schedulers: dict[tuple[str, int, str | None], Scheduler] = {}
        for key, version in self._versions.items():
            self.schedulers[*key, None] = self.schedulers[*key, version.served.fingerprint] = version.scheduler
        self.running = [*(version.scheduler for version in self._versions.values()), *self.draining]

    def _retire(self, key: Key, reason: str) -> None:
        self.draining.append(self._versions.pop(key).scheduler)
        log.info("model unloaded", model=key[0], version=key[1], reason=reason)

    def _set_unloaded(self, models: set[str]) -> None:
        self._unloaded = models
        _write_json(self._unloaded_file, sorted(models))

    @contextmanager
    def _noted(self, version: ModelVersion, mark: str) -> Iterator[None]:
        """Keep on disk that a version is being loaded: whatever it does to this process, the next one knows."""
        before, starts = self._loading.get(str(version), (mark, 0))
        self._loading[str(version)] = mark, starts + 1 if before == mark else 1
        _write_json(self._loading_file, self._loading)
        try:
            yield
        finally:
            del self._loading[str(version)]
            _write_json(self._loading_file, self._loading)


def _read_json(file: Path, default: Any) -> Any:
    return json.loads(file.read_text()) if file.exists() else default


def _write_json(file: Path, content: object) -> None:
    """Replace a file as a whole. On a full disk a restart does not know of it, which is better than to exit now."""
    new = file.with_suffix(f".{os.getpid()}")  # the engines of a server share a file
    try:
        new.write_text(json.dumps(content))
        new.replace(file)
    except OSError as error:
        log.error("file not written", file=str(file), error=str(error))
        new.unlink(missing_ok=True)


def refusals(refused: dict[Key, RefusedVersion]) -> list[Refusal]:
    """What HTTP workers hear of the versions that were refused."""
    return [Refusal(ModelVersion(*key), version.reason) for key, version in refused.items()]
