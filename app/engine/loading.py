"""Loading: from a version's folder in the model store to an engine that has been tried out."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from app.engine import messages
from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.core import Engine
from app.engine.lane import Batching
from app.engine.messages import ServedVersion
from app.engine.sessions import Sessions
from jfb import LabelStop, checkpoint
from jfb.label_stop import Kind, label_tolerance
from jfb.model_config import Serving
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
            label_stop=LabelStop.of(found.network, found.config.serving),
        )
        sessions = Sessions(self.session_bytes, self.session_seconds)
        engine = Engine([batch], max_waiting_rows=self.max_waiting_rows, sessions=sessions)
        served = ServedVersion(
            model,
            version,
            found.config.model_dump_json(),
            fingerprint,
            solvers=tuple(batch.solvers),
            label_stop=_described(batch, found.config.serving),
        )
        return LoadedVersion(engine, served)


def _described(batch: RunningBatch, serving: Serving) -> messages.LabelStop | None:
    """What a request may count on that asks for label stops; None if it may not."""
    if batch.label_stop is None:
        return None
    solvers = tuple(name for name, solver in batch.solvers.items() if batch.label_stop.goes_with(type(solver)))
    offer = messages.LabelStop(batch.label_stop.kind.value, solvers, label_tolerance(serving))
    tested = serving.label_calibration
    if batch.label_stop.kind is Kind.GUARANTEE or tested is None:
        return offer
    share = tested.differing / tested.inputs
    return msgspec.structs.replace(offer, inputs=tested.inputs, differing=share, iterations=tested.iterations)


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
