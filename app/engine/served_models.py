"""Lifecycle: which versions are served, and how one takes the place of another."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import structlog
import torch

from app.engine.loading import LoadedVersion, Loader, fingerprint
from app.engine.scheduler import Engine
from app.engine_client.messages import ServedVersion
from jfb.store import list_models, list_versions

log = structlog.get_logger(__name__)

Key = tuple[str, int]
"""Name and version."""


@dataclass(frozen=True)
class RefusedVersion:
    """A version that could not be loaded; it is tried again when its folder has changed, or somebody asks for it."""

    fingerprint: str
    reason: str


@dataclass(frozen=True)
class Changes:
    """What was found in the store, and has not taken effect."""

    models: frozenset[str]
    """Those that were looked at."""
    present: frozenset[Key]
    """The versions of those that the store holds."""
    loaded: dict[Key, LoadedVersion] = field(default_factory=dict)
    refused: dict[Key, RefusedVersion] = field(default_factory=dict)


class Lifecycle:
    """Serves what the store holds, but for what cannot be loaded and what somebody unloaded.

    A change has two halves. ``find_changes`` reads, loads and tries out, for as long as it takes; it may run in another
    thread while the engines tick. ``apply`` exchanges engines between two ticks, in no time: from then on new jobs go to
    the new engine, while the one it replaces finishes what it has, and goes. So no job is dropped, and as every version
    has an engine of its own, no batch mixes two of them.

    Args:
        loader: makes engines.
        unloaded: names of models not to serve until somebody loads them.

    Attributes:
        unloaded: those names.
    """

    def __init__(self, loader: Loader, unloaded: Iterable[str] = ()) -> None:
        self.unloaded = set(unloaded)
        self._loader = loader
        self._versions: dict[Key, LoadedVersion] = {}
        self._refused: dict[Key, RefusedVersion] = {}
        self._draining: list[Engine] = []

    @property
    def served(self) -> list[ServedVersion]:
        return [self._versions[key].served for key in sorted(self._versions)]

    @property
    def refused(self) -> dict[str, str]:
        """``name/version`` to the reason; an older load of that version may still be served."""
        return {f"{model}/{version}": refusal.reason for (model, version), refusal in self._refused.items()}

    @property
    def engines(self) -> dict[Key, Engine]:
        """Those that new jobs go to."""
        return {key: version.engine for key, version in self._versions.items()}

    @property
    def busy(self) -> bool:
        return any(engine.busy for engine in self.all_engines())

    def all_engines(self) -> Iterator[Engine]:
        """Those that may have jobs, also the ones that finish their last."""
        for version in self._versions.values():
            yield version.engine
        yield from self._draining

    def find(self, model: str, version: int, fingerprint: str | None) -> Engine | None:
        """The engine for a job, or None if that version is not served, or not with this fingerprint."""
        found = self._versions.get((model, version))
        if found is None or fingerprint not in (None, found.served.fingerprint):
            return None
        return found.engine

    def find_changes(self, model: str | None) -> Changes:
        """Load what the store holds and is not served yet. Changes nothing here, so it may run in another thread.

        Args:
            model: the one to look at, also at versions of it that were refused before; None is all but the unloaded ones,
                and those versions are left alone that are as they were when they were refused.

        Raises:
            torch.AcceleratorError: if the device is lost.
        """
        store = self._loader.store
        found = list_models(store) if model is None else {model: list_versions(store / model)}
        versions, refused = dict(self._versions), dict(self._refused)
        models = frozenset({model} if model is not None else {*found, *(name for name, _ in (*versions, *refused))})
        present = frozenset((name, version) for name, numbers in found.items() for version in numbers)
        changes = Changes(models, present)
        for name, version in sorted(present):
            key = name, version
            if model is None and name in self.unloaded:
                continue
            mark = fingerprint(store / name / str(version))
            if key in versions and versions[key].served.fingerprint == mark:
                continue
            if key in refused and refused[key].fingerprint == mark and model is None:
                changes.refused[key] = refused[key]
                continue
            try:
                changes.loaded[key] = self._loader.load(name, version, mark)
            except torch.AcceleratorError:  # the device is lost, not the model broken
                raise
            except Exception as error:  # whatever a model does, it must not take the others down
                reason = str(error) or type(error).__name__
                changes.refused[key] = RefusedVersion(mark, reason)
                log.error("model refused", model=name, version=version, reason=reason, still_served=key in versions)
        return changes

    def apply(self, changes: Changes) -> None:
        """Let changes take effect; call it between two ticks. What was unloaded in the meantime stays so."""
        for key in [key for key in self._refused if key[0] in changes.models]:
            del self._refused[key]
        for key in [key for key in self._versions if key[0] in changes.models and key not in changes.present]:
            self._retire(key, "it is no longer in the store")
        for key, new in changes.loaded.items():
            if key[0] in self.unloaded:
                continue
            if key in self._versions:
                self._retire(key, "its folder was replaced")
            self._versions[key] = new
            log.info("model loaded", model=key[0], version=key[1], devices=[str(device) for device in self._loader.devices])
        self._refused |= {key: refusal for key, refusal in changes.refused.items() if key[0] not in self.unloaded}

    def unload(self, model: str) -> bool:
        """Serve no version of a model any more; return whether there was any to serve or to be refused."""
        keys = [key for key in self._versions if key[0] == model]
        refused = [key for key in self._refused if key[0] == model]
        for key in keys:
            self._retire(key, "somebody unloaded it")
        for key in refused:
            del self._refused[key]
        if keys or refused:
            self.unloaded.add(model)
        return bool(keys or refused)

    def drop_drained(self) -> None:
        """Forget the replaced engines that have finished."""
        if self._draining:
            self._draining = [engine for engine in self._draining if engine.busy]

    def _retire(self, key: Key, why: str) -> None:
        self._draining.append(self._versions.pop(key).engine)
        log.info("model goes", model=key[0], version=key[1], why=why)
