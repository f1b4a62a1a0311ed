"""Catalogue: which models are served, and which one a request means."""

from collections.abc import Iterable
from difflib import get_close_matches

from app.engine_client.errors import ModelNotFound, NoDefaultModel
from app.engine_client.messages import ServedVersion, State
from jfb.store import ModelVersion


class Catalogue:
    """The served models, by name and version; of two loads of one version, that of the later state counts.

    Attributes:
        refused: versions that could not be loaded, each with the reason.
        unloaded: names of the models that a client has unloaded.
        names: of the served models, in alphabetical order.
    """

    def __init__(self, states: Iterable[State] = (), default: str | None = None) -> None:
        self.refused: dict[ModelVersion, str] = {}
        self.unloaded: list[str] = []
        self._named_default = default
        self._aliases: dict[str, dict[str, int]] = {}
        served: dict[tuple[str, int], ServedVersion] = {}
        for state in states:
            served |= {(one.model, one.version): one for one in state.served}
            self.refused |= {one.version: one.reason for one in state.refused}
            self.unloaded = sorted({*self.unloaded, *state.unloaded})
            self._aliases |= state.aliases
        self._models: dict[str, dict[int, ServedVersion]] = {}
        for (name, version), one in sorted(served.items()):
            self._models.setdefault(name, {})[version] = one
        self.names = list(self._models)

    @property
    def default(self) -> str | None:
        """The model of ``/predict``: the one that the settings name, else the one last published; None if that is not served."""
        if self._named_default is not None:
            return self._named_default if self._named_default in self._models else None
        return max(self.names, key=self._last_published, default=None)

    def _last_published(self, name: str) -> float:
        return max(one.published for one in self._models[name].values())

    def versions(self, name: str) -> list[int]:
        """The served versions of a model, ascending; ``ModelNotFound`` if there is none."""
        if name not in self._models:
            refused = [f"; version {version} was refused: {reason}" for version, reason in self.refused_versions(name).items()]
            near = "".join(f"; did you mean {near}?" for near in get_close_matches(name, self.names, 1))
            raise ModelNotFound(f"no model {name[:80]!r} (available: {', '.join(self.names) or 'none'}{near}){''.join(refused)}")
        return list(self._models[name])

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of a model, each with the number of its version, which may not be served."""
        return self._aliases.get(name, {})

    def refused_versions(self, name: str) -> dict[int, str]:
        """The versions of a model that could not be loaded, each with the reason."""
        return {version.number: reason for version, reason in self.refused.items() if version.name == name}

    def find(self, name: str | None = None, version: int | str | None = None) -> ServedVersion:
        """What a request means: no name is the default model, or ``NoDefaultModel``; no version is the highest; text is an alias.

        ``ModelNotFound`` for a name, a version or an alias that is not served.
        """
        name = name or self.default
        if name is None:
            raise NoDefaultModel(self._why_no_default())
        versions, aliases, alias = self.versions(name), self.aliases(name), ""
        if isinstance(version, str):
            if version not in aliases:
                near = "".join(f"; did you mean {near}?" for near in get_close_matches(version, aliases, 1))
                known = f"versions: {', '.join(map(str, versions))}; aliases: {', '.join(aliases) or 'none'}{near}"
                raise ModelNotFound(f"model {name} has no alias {version[:80]!r} ({known})")
            alias, version = f", which is {version}", aliases[version]
        if version is None:
            version = versions[-1]
        elif version not in self._models[name]:
            reason = f"; it was refused: {refused}" if (refused := self.refused_versions(name).get(version)) else ""
            raise ModelNotFound(
                f"model {name} has no version {version}{alias} (available: {', '.join(map(str, versions))}){reason}"
            )
        return self._models[name][version]

    def _why_no_default(self) -> str:
        if not self.names:
            return "no model is loaded: train one with python -m training train digits"
        instead = f"use /models/{self.names[0]}/predict, or start with --default-model {self.names[0]}"
        return f"the default model {self._named_default!r} is not served (available: {', '.join(self.names)}): {instead}"
