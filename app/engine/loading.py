"""Loading: from a version's folder in the model store to an engine that has been tried out."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
import torch
from torch import Tensor

from app.engine.backends import BackendName, Precision, candidates, choose, low_precision
from app.engine.batch import RunningBatch
from app.engine.lane import Batching
from app.engine.scheduler import Engine
from app.engine.warm_starts import Sessions
from app.engine_client import messages
from app.engine_client.messages import ServedVersion
from jfb import Checkpoint, LabelStop, checkpoint
from jfb.config import Serving
from jfb.label_stop import Kind, label_tolerance
from jfb.solvers import SOLVERS, solvers_for

MOST_SLOTS = defaultdict(lambda: 1024, cpu=64)
"""By the type of the device."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LoadedVersion:
    """One version of one model, ready to compute."""

    engine: Engine
    served: ServedVersion


@dataclass(frozen=True)
class Loader:
    """Makes engines of the versions in a store.

    The arguments are those of ``Engine``, ``RunningBatch``, ``Sessions``, ``candidates`` and ``choose``.
    """

    store: Path
    devices: tuple[torch.device, ...]
    slots: int | None
    """On each device; None is as many as a measurement finds worthwhile, at most ``MOST_SLOTS``."""
    max_waiting_rows: int
    batching: Batching
    session_bytes: int
    session_seconds: float
    backend: BackendName = "auto"
    precision: Precision = "auto"

    def load(self, model: str, version: int, fingerprint: str) -> LoadedVersion:
        """Load a version on every device, choose what computes it there, and run it once in full.

        Raises:
            torch.AcceleratorError: if a device is lost.
            Exception: whatever a model that cannot be served raises.
        """
        folder = self.store / model / str(version)
        batches = []
        for device in self.devices:
            found = checkpoint.load(folder, device)
            # The weights are a mapping of their file so far: whoever writes to that would change the network, or end this
            # process.
            for tensor in (*found.network.parameters(), *found.network.buffers()):
                tensor.data = tensor.data.clone()
            batches.append(
                make_batch(
                    found,
                    folder,
                    device,
                    slots=self.slots,
                    batching=self.batching,
                    backend=self.backend,
                    precision=self.precision,
                )
            )
        sessions = Sessions(self.session_bytes, self.session_seconds)
        engine = Engine(batches, max_waiting_rows=self.max_waiting_rows, sessions=sessions)
        served = ServedVersion(
            model,
            version,
            found.config.model_dump_json(),
            fingerprint,
            solvers=tuple(batches[0].solvers),
            label_stop=_described(batches[0], found.config.serving),
        )
        return LoadedVersion(engine, served)


def make_batch(
    found: Checkpoint,
    folder: Path,
    device: torch.device,
    *,
    slots: int | None = None,
    batching: Batching = "iteration",
    backend: BackendName = "auto",
    precision: Precision = "auto",
) -> RunningBatch:
    """Choose what computes a version on a device, and make room for its rows.

    Args:
        found: what ``folder`` holds, on the device.
        slots: how many rows; None is as many as a measurement finds worthwhile, at most ``MOST_SLOTS``.
        batching: as in ``RunningBatch``; in lockstep no low precision is used.
        backend, precision: as in ``candidates`` and ``choose``.
    """
    most = slots or MOST_SLOTS[device.type]
    lockstep = batching == "lockstep"
    choice = choose(
        candidates(found, folder, device, backend),
        _probe(found, most),
        only=None if backend == "auto" else backend,
        rough=None if lockstep else low_precision(found, device),
        precision="float32" if lockstep else precision,
    )
    slots = slots or min(choice.best_slots, most)
    log.info(
        "backends chosen",
        folder=str(folder),
        device=str(device),
        **choice.table,
        microseconds_a_row=[round(1e6 * seconds / 2**k, 1) for k, seconds in enumerate(choice.step_seconds)],
        low_precision=choice.rough is not None,
        refused=choice.refused,
        slots=slots,
    )
    own = found.config.serving.solver
    return RunningBatch(
        choice.backend,
        {name: SOLVERS[name]() for name in dict.fromkeys((own, *solvers_for(type(found.network))))},
        found.config.serving.residual_norm,
        found.config.input.shape,
        slots=slots,
        batching=batching,
        rough=choice.rough,
        label_stop=LabelStop.of(found.network, found.config.serving),
    )


def _described(batch: RunningBatch, serving: Serving) -> messages.LabelStop | None:
    """What a request may count on that asks for label stops; None if it may not."""
    if batch.label_stop is None:
        return None
    solvers = tuple(name for name, solver in batch.solvers.items() if batch.label_stop.supports(type(solver)))
    offer = messages.LabelStop(batch.label_stop.kind.value, solvers, label_tolerance(serving))
    tested = serving.label_calibration
    if batch.label_stop.kind is Kind.GUARANTEE or tested is None:
        return offer
    share = tested.differing / tested.inputs
    return msgspec.structs.replace(offer, inputs=tested.inputs, differing=share, iterations=tested.iterations)


def _probe(found: Checkpoint, rows: int) -> Tensor:
    """Inputs that may not mean anything, but are in the range of the model's."""
    spec = found.config.input
    some = torch.rand(rows, *spec.shape, generator=torch.Generator().manual_seed(0))
    low, high = (-1.0 if spec.low is None else spec.low), (1.0 if spec.high is None else spec.high)
    return low + (high - low) * some


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
