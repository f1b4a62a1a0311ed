"""The catalogue: which models are served, and which one a request means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import msgspec

from app.engine_client.messages import LabelStop, ServedVersion
from app.http.errors import Refusal, expected, shown


class Architecture(msgspec.Struct, frozen=True):
    """The name of the class that computes a model."""

    name: str


class InputSpec(msgspec.Struct, frozen=True):
    """What one raw input is (see ``jfb.config.InputSpec``)."""

    shape: tuple[int, ...]
    kind: Literal["image", "vector"]
    dtype: Literal["float32", "uint8"]
    low: float | None
    high: float | None


class Serving(msgspec.Struct, frozen=True):
    """How a model is solved unless a request says otherwise (see ``jfb.config.Serving``)."""

    solver: str
    tolerance: float
    max_iterations: int
    residual_norm: str


class Config(msgspec.Struct, frozen=True):
    """The part of a model's config that HTTP needs.

    The engine has validated it and filled in what the file left out. ``jfb.ModelConfig`` itself would bring torch into
    this process.
    """

    architecture: Architecture
    input: InputSpec
    classes: list[str]
    serving: Serving


@dataclass(frozen=True)
class Model:
    """One version of one served model."""

    name: str
    version: int
    config: Config
    fingerprint: str
    """Which load of that version this is."""
    solvers: tuple[str, ...] = ()
    """Those that a request may name."""
    label_stop: LabelStop | None = None
    """What a request may count on that asks for label stops; None if it may not."""


class Catalogue:
    """The served models, by name and version.

    Args:
        served: what the engine holds.
        refused: ``name/version`` to the reason why it was not loaded.
        default: the name that the settings give to the default model.
    """

    def __init__(self, served: Sequence[ServedVersion], refused: Mapping[str, str], default: str | None) -> None:
        self._models: dict[str, dict[int, Model]] = {}
        for one in sorted(served, key=lambda one: (one.model, one.version)):
            self._models.setdefault(one.model, {})[one.version] = _read(one)
        self._named_default = default
        self.refused = dict(refused)

    @property
    def names(self) -> list[str]:
        """Of the served models, in alphabetical order."""
        return list(self._models)

    @property
    def default(self) -> str | None:
        """The model that ``/predict`` means: the one that the settings name, else the only one there is, else none."""
        if self._named_default is not None:
            return self._named_default if self._named_default in self._models else None
        return self.names[0] if len(self._models) == 1 else None

    def versions(self, name: str) -> list[int]:
        """The served versions of a model, ascending.

        Raises:
            Refusal: 404 if there is no such model.
        """
        if name not in self._models:
            refused = [f"; version {version} was refused: {reason}" for version, reason in self.refused_versions(name).items()]
            raise Refusal(404, f"model: expected one of {_listed(self.names)}, got {shown(name)}{''.join(refused)}")
        return list(self._models[name])

    def refused_versions(self, name: str) -> dict[str, str]:
        """The versions of a model that could not be loaded, each with the reason."""
        return {path.removeprefix(f"{name}/"): reason for path, reason in self.refused.items() if path.startswith(f"{name}/")}

    def find(self, name: str | None, version: int | str | None) -> Model:
        """The model that a request means; no name is the default model, no version the highest.

        Raises:
            Refusal: 400 if there is no name and no default model, 404 for a name or a version that is not served, 422 for a
                version that is a text, but none of a positive integer.
        """
        if name is None:
            name = self.default
        if name is None:
            raise Refusal(400, f"model: {self._why_no_default()}: ask /models/{{name}}/predict with one of {_listed(self.names)}")
        versions = self.versions(name)
        if version is None:
            version = versions[-1]
        elif isinstance(version, str):
            if not (version.isascii() and version.isdecimal() and len(version) < 20):
                raise expected("version", "a positive integer", version)
            version = int(version)
        if version not in versions:
            reason = self.refused_versions(name).get(str(version))
            refused = f", which was refused: {reason}" if reason else ""
            raise Refusal(404, f"version: expected one of {_listed(versions)} of {shown(name)}, got {version}{refused}")
        return self._models[name][version]

    def _why_no_default(self) -> str:
        if self._named_default is not None:
            return f"the default model {shown(self._named_default)} is not served"
        return "the server has several models and no default model" if self._models else "the server has no model"


@lru_cache(maxsize=1024)
def _read(served: ServedVersion) -> Model:
    config = msgspec.json.decode(served.config, type=Config)
    return Model(served.model, served.version, config, served.fingerprint, served.solvers, served.label_stop)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none (there are none)"
