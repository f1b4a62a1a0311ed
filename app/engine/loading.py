"""Loading: from a version's folder in the model store to a scheduler that has been tried out."""

import ctypes
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TypeVar, cast

import msgspec
import structlog
import torch
from torch import Tensor

from app.engine.backends import Backend, FixedBatch, TF32Backend, candidates, choose, low_precision
from app.engine.batch import RunningBatch
from app.engine.graphs import Capture, CudaGraphs, eager, why_not_captured
from app.engine.masked import BLOCKS, Masking
from app.engine.memory import measured_slots
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine.warm_starts import WarmStarts
from app.engine_client import messages
from app.engine_client.messages import ServedVersion
from app.settings import BackendName, EngineConfig
from jfb import Checkpoint, LabelStop, checkpoint, store
from jfb.config import Serving
from jfb.label_stop import Kind, label_tolerance

MAX_SLOTS = defaultdict(lambda: 1024, cpu=64)  # by the type of the device
DETERMINISTIC_SLOTS = defaultdict(lambda: 256, cpu=16)  # not measured, as rounding depends on them
MAX_PROBE_NUMBERS = 2**28  # of the inputs, or of the states, that a model is tried with
Value = TypeVar("Value")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LoadedVersion:
    """One version of one model, ready to compute."""

    scheduler: Scheduler
    served: ServedVersion


@dataclass(frozen=True)
class Loader:
    """Makes schedulers of the versions in a store."""

    config: EngineConfig
    device: torch.device

    def load(self, model: str, version: int, fingerprint: str) -> LoadedVersion:
        """Load a version, choose what computes it, and run it in full; raises whatever a model that cannot be served does.

        ``TimeoutError`` after ``config.load_seconds``.
        """
        return _in_limited_time(lambda: self._load(model, version, fingerprint), self.config.load_seconds)

    def _load(self, model: str, version: int, fingerprint: str) -> LoadedVersion:
        folder = self.config.model_store / model / str(version)
        found = checkpoint.load(folder, self.device)
        batch = make_batch(found, folder, self.device, self.config, self._capture(folder))
        warm_starts = WarmStarts(self.config.session_bytes, self.config.session_seconds)
        label_stop = _described(batch, found.config.serving)
        config = found.config.model_dump_json()
        published = store.publication_time(folder)
        served = ServedVersion(model, version, config, fingerprint, published, tuple(batch.solvers), label_stop)
        return LoadedVersion(Scheduler(batch, max_waiting_rows=self.config.max_waiting_rows, warm_starts=warm_starts), served)

    def _capture(self, folder: Path) -> Capture | None:
        """What captures a version's iterations on a GPU: nothing if that failed in a process of its own."""
        if self.device.type == "cuda" and (reason := why_not_captured(folder, self.device, self.config)):
            log.warning("CUDA graphs not used", folder=str(folder), reason=reason)
            return eager
        return None


def make_batch(
    found: Checkpoint, folder: Path, device: torch.device, config: EngineConfig, capture: Capture | None = None
) -> RunningBatch:
    """Choose what computes the version that was found in a folder, and make room for its rows.

    If ``config.slots`` is None, they are as many as a measurement finds worthwhile, at most ``MAX_SLOTS`` and on a GPU what
    fits into its memory. There, blocks of iterations are captured, as CUDA graphs unless ``capture`` is given. Raises
    ``ValueError`` if rows shall be deterministic and are not.
    """
    fixed = config.deterministic
    norm, stop = found.config.serving.residual_norm, LabelStop.of(found.network, found.config.serving)
    wanted: BackendName = "torch" if fixed and config.backend == "auto" else config.backend
    capture = capture or (CudaGraphs(device) if device.type == "cuda" else eager)
    backends = candidates(found, folder, device, wanted)
    low = {} if fixed else low_precision(found, device, captured=capture is not eager)

    def make(backend: Backend, slots: int, low: Backend | None) -> RunningBatch:
        return RunningBatch(
            backend,
            found.solvers,
            norm,
            found.config.input.shape,
            slots=slots,
            low_precision=low,
            label_stop=stop,
            has_learned_start=found.config.learned_start is not None,
        )

    max_slots = config.slots or min((DETERMINISTIC_SLOTS if fixed else MAX_SLOTS)[device.type], _max_rows(found, device))
    if device.type == "cuda" and config.slots is None and not fixed:
        reference = next(iter(backends.values()))
        rounded = next(iter(low.values()), None)
        max_slots = min(max_slots, measured_slots(lambda slots: make(reference, slots, rounded), device))
    only = None if wanted == "auto" else wanted
    probe = make_probe(found, max_slots)
    choice = choose(backends, probe, only=only, low_precision=low, precision=config.precision)
    slots = config.slots or (max_slots if fixed else min(choice.best_slots, max_slots))
    microseconds = [round(1e6 * seconds / 2**k, 1) for k, seconds in enumerate(choice.step_seconds)]
    used = sorted({name for names in choice.table.values() for name in names})
    log.info("backends chosen", folder=str(folder), backends=used, low_precision=choice.low_precision is not None, slots=slots)
    log.debug("backends measured", **choice.table, microseconds_per_row=microseconds, refused=choice.refused)
    batch = make(FixedBatch(choice.backend, slots) if fixed else choice.backend, slots, choice.low_precision)
    masking = Masking() if fixed else None
    if device.type == "cuda":
        buckets = () if fixed else tuple(2**k for k in range(slots.bit_length()))
        masking = Masking(buckets, BLOCKS, capture, reads_out=True)
    if device.type == "cpu" or masking is not None:
        batch.measure(time.perf_counter, masking)
    # Steps that are not captured would allow TF32 while another version loads.
    if isinstance(choice.low_precision, TF32Backend) and isinstance(capture, CudaGraphs) and capture.failure is not None:
        batch = make(choice.backend, slots, None)
        batch.measure(time.perf_counter, masking)
    if fixed:
        _check_slots(batch, probe[:1])
    return batch


def _check_slots(batch: RunningBatch, probe: Tensor) -> None:
    """Check that a row, ``probe``, computes the same to the last bit in every slot."""
    inputs = probe.repeat(batch.slots, *(1,) * (probe.dim() - 1))
    for solver in batch.solvers:
        found = iterated(batch, inputs, solver, 3)
        if len({(*logits, residual) for logits, residual in zip(found.logits.tolist(), found.residual, strict=True)}) > 1:
            raise ValueError(f"deterministic: {solver} rounds a row differently in different slots (--slots {batch.slots})")
    for lane in batch.lanes:
        lane.wasted_iterations = 0


def iterated(batch: RunningBatch, inputs: Tensor, solver: str, iterations: int) -> RunningRequest:
    """What rows, at most as many as there are slots, came to after some iterations in an empty batch."""
    rows = len(inputs)
    scheduler = Scheduler(batch, max_waiting_rows=rows)
    numbers = inputs.numpy().tobytes()
    asked = messages.Request("", 0, numbers, [1e-30] * rows, [iterations] * rows, [None] * rows, solver=solver)
    request = RunningRequest(0, asked, batch.input_shape)
    scheduler.submit(request)
    while scheduler.busy:
        scheduler.tick(0.0)
    return request


def _described(batch: RunningBatch, serving: Serving) -> messages.LabelStop | None:
    """What a request with label stops may rely on; None if the version offers none."""
    if batch.label_stop is None:
        return None
    solvers = tuple(name for name, solver in batch.solvers.items() if batch.label_stop.supports(type(solver)))
    offer = messages.LabelStop(batch.label_stop.kind.value, solvers, label_tolerance(serving))
    tested = serving.label_calibration
    if batch.label_stop.kind is Kind.GUARANTEE or tested is None:
        return offer
    share = tested.differing / tested.inputs
    return msgspec.structs.replace(offer, inputs=tested.inputs, differing=share, iterations=tested.iterations)


@torch.inference_mode()
def _max_rows(found: Checkpoint, device: torch.device) -> int:
    """How many rows may be tried together, as a power of two: models whose rows are large must not take all memory."""
    inputs = make_probe(found, 1).to(device)
    numbers = max(inputs.numel(), found.network.first_state(found.network.inject(inputs)).numel())
    return 1 << (max(1, MAX_PROBE_NUMBERS // numbers).bit_length() - 1)


def make_probe(found: Checkpoint, rows: int) -> Tensor:
    """Inputs that may not mean anything, but are in the range of the model's."""
    spec = found.config.input
    uniform = torch.rand(rows, *spec.shape, generator=torch.Generator().manual_seed(0))
    low, high = (-1.0 if spec.low is None else spec.low), (1.0 if spec.high is None else spec.high)
    return low + (high - low) * uniform


def fingerprint(folder: Path) -> str:
    """What changes when a file in a version's folder is replaced or written to: sizes, times and numbers of the files."""
    facts = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix in (".json", ".safetensors", ".onnx") and path.name != "metrics.json":
            status = path.stat()
            facts.append(f"{path.name!a}:{status.st_ino:x}:{status.st_size:x}:{status.st_mtime_ns:x}")
    return " ".join(facts)


def _in_limited_time(work: Callable[[], Value], seconds: float) -> Value:
    """Do work in a thread of its own, which is abandoned with a ``TimeoutError`` if that takes longer.

    Python cannot end a thread, but raises ``SystemExit`` in it as soon as it returns from what it waits for or computes. Nothing
    takes that for a failure to go on after, such as that of a backend or of a capture.
    """
    result: Future[Value] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    thread = Thread(target=run, name="load", daemon=True)  # a daemon, so that this process can exit
    thread.start()
    if not wait([result], seconds).done:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(cast(int, thread.ident)), ctypes.py_object(SystemExit))
        raise TimeoutError(f"loading: must take at most {seconds:g} s (--load-seconds)")
    return result.result()
