"""Loading a model store: one engine a version."""

from dataclasses import dataclass, field
from pathlib import Path

import structlog
import torch

from app.engine.backends import TorchBackend
from app.engine.core import Batching, Engine
from app.engine.messages import ServedVersion
from jfb import checkpoint
from jfb.solvers import SOLVERS

log = structlog.get_logger(__name__)


@dataclass
class Loaded:
    """What a store holds."""

    engines: dict[tuple[str, int], Engine] = field(default_factory=dict)
    """By name and version."""
    served: list[ServedVersion] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """``name/version`` to the reason."""


def load_store(store: Path, device: torch.device, *, slots: int, max_waiting_rows: int, batching: Batching) -> Loaded:
    """Load every version of every model and run each once. One that cannot be served is refused, and the others are served.

    The arguments are those of ``Engine``.
    """
    loaded = Loaded()
    for model, versions in checkpoint.models(store).items():
        for version in versions:
            try:
                found = checkpoint.load(store / model / str(version), device)
                engine = Engine(
                    TorchBackend(found.network, device),
                    SOLVERS[found.config.serving.solver](),
                    found.config.serving.residual_norm,
                    found.config.input.shape,
                    slots=slots,
                    max_waiting_rows=max_waiting_rows,
                    batching=batching,
                )
            except torch.AcceleratorError:  # the device is lost, not the model broken
                raise
            except Exception as error:  # whatever a model does, it must not take the others down
                loaded.refused[f"{model}/{version}"] = str(error)
                log.error("model refused", model=model, version=version, reason=str(error))
                continue
            loaded.engines[model, version] = engine
            loaded.served.append(ServedVersion(model, version, found.config.model_dump_json()))
            log.info("model loaded", model=model, version=version, device=str(device))
    return loaded
