"""Loading: from a version's folder in the model store to an engine that has been tried out."""

from dataclasses import dataclass
from pathlib import Path

import torch

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.core import Engine
from app.engine.lane import Batching
from app.engine.messages import ServedVersion
from app.engine.sessions import Sessions
from jfb import checkpoint
from jfb.solvers import SOLVERS


@dataclass(frozen=True)
class LoadedVersion:
    """One version of one model, ready to compute."""

    engine: Engine
    served: ServedVersion


@dataclass(frozen=True)
class Loader:
    """Makes engines of the versions in a store; the arguments are those of ``Engine`` and ``Sessions``."""

    store: Path
    device: torch.device
    slots: int
    max_waiting_rows: int
    batching: Batching
    session_bytes: int
    session_seconds: float

    def load(self, model: str, version: int, fingerprint: str) -> LoadedVersion:
        """Load a version and run its network once, in full.

        Raises:
            torch.AcceleratorError: if the device is lost.
            Exception: whatever a model that cannot be served raises.
        """
        found = checkpoint.load(self.store / model / str(version), self.device)
        # The weights are a mapping of their file so far: whoever writes to that would change the network, or end this process.
        for tensor in (*found.network.parameters(), *found.network.buffers()):
            tensor.data = tensor.data.clone()
        own = found.config.serving.solver
        batch = RunningBatch(
            TorchBackend(found.network, self.device),
            {name: SOLVERS[name]() for name in (own, *(other for other in SOLVERS if other != own))},
            found.config.serving.residual_norm,
            found.config.input.shape,
            slots=self.slots,
            batching=self.batching,
        )
        sessions = Sessions(self.session_bytes, self.session_seconds)
        engine = Engine([batch], max_waiting_rows=self.max_waiting_rows, sessions=sessions)
        config = found.config.model_dump_json()
        return LoadedVersion(engine, ServedVersion(model, version, config, fingerprint, solvers=tuple(batch.solvers)))


def fingerprint(folder: Path) -> str:
    """Tell apart what a version's folder holds from what it held before, without reading it.

    A file that is replaced, or written to, has another size, time or number.
    """
    facts = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix in (".json", ".safetensors", ".onnx") and path.name != "metrics.json":
            status = path.stat()
            facts.append(f"{path.name}:{status.st_ino:x}:{status.st_size:x}:{status.st_mtime_ns:x}")
    return " ".join(facts)
