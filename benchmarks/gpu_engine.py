"""What the engine promises, on a device: every architecture, residual norm and solver, and every backend with the relative norm.

Rows with mixed tolerances and caps come and go in one batch, and are compared with ``jfb.predict`` in float64 on the CPU: counts,
statuses and logits. The first rows are then computed alone, and must be as they were in company. Rows with label stops must have
the label of the fixed point. Rows that start in low precision must end as the others do. On a GPU no capture may fail. The
networks are untrained. Exits with status 1 if any promise is broken.

    python -m benchmarks.gpu_engine              # CUDA if there is one, else the CPU
"""

import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import structlog
import torch
import typer

import jfb
from app.engine.backends import TorchBackend, candidates, low_precision
from app.engine.batch import RunningBatch
from app.engine.graphs import Capture, CudaGraphs, eager
from app.engine.loading import make_batch
from app.engine.masked import BLOCKS, Masking
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine_client.messages import Request, Stop
from app.settings import EngineConfig
from benchmarks.gpu_check import ROUNDING, Finding, error, run_checks
from benchmarks.untrained import HIGH, publish
from jfb import Checkpoint, Prediction, ResidualNorm, Status
from jfb.solvers import SOLVERS, solvers_for
from training.device import choose_device

NETWORKS: dict[str, tuple[tuple[int, ...], dict[str, object]]] = {
    "implicit_mlp": ((16,), {"width": 32, "contraction": 0.9}),
    "monotone_mlp": ((16,), {"width": 32}),
    "implicit_resnet": ((3, 16, 16), {"channels": [16, 32], "pool": [2, 2], "contraction": 0.9, "average": True}),
    "monotone_conv": ((1, 8, 8), {"channels": [8], "pool": [2]}),
    "max_propagation": ((3, 8, 8), {}),
    "authors_resnet": ((1, 16, 16), {}),
}
SLOTS = 8
TOLERANCES, CAPS = (1e-1, 1e-3), (2, 100)
DIFFERENT_COUNTS = 0.03
"""Share of rows: a residual may round to the other side of the tolerance."""
NEAR = 1e-5
"""Tolerance of rows that start in low precision: at a loose one, they end where rounding has led them."""
AMPLIFIED = 1e-2
"""Of logits: Anderson's least squares amplify rounding while a stiff row is far from its fixed point."""


@dataclass(frozen=True)
class Rows:
    """Inputs with their limits: every tolerance, and some caps that are reached."""

    inputs: np.ndarray
    tolerance: np.ndarray
    cap: np.ndarray

    @classmethod
    def random(cls, shape: tuple[int, ...], rows: int) -> "Rows":
        generator = np.random.default_rng(0)
        inputs = (HIGH * generator.random((rows, *shape))).astype(np.float32)
        return cls(inputs, np.resize(TOLERANCES, rows), generator.choice(CAPS, rows, p=[0.2, 0.8]))


def check(name: str, norm: ResidualNorm, device: torch.device, count: int, folder: Path) -> Iterator[Finding]:
    """Check one architecture with one residual norm."""
    shape, arguments = NETWORKS[name]
    version = publish(folder, f"{name}-{norm}", name, shape, arguments, residual_norm=norm)
    rows = Rows.random(shape, count)
    checkpoint, reference = jfb.load(version, device), jfb.load(version)
    reference.network.double()
    solvers = solvers_for(type(reference.network))
    expected = {solver: predict(reference, solver, rows) for solver in solvers}
    labels: np.ndarray | None = None
    # Norms have nothing to do with backends, and to make a batch takes a second on a GPU.
    for backend in candidates(checkpoint, version, device, "auto" if norm == ResidualNorm.RELATIVE else "torch"):
        config, capture = EngineConfig(slots=SLOTS, backend=backend, precision="float32"), captures(device)
        batch = make_batch(jfb.load(version, device), version, device, config, capture)
        yield check_captures(f"{name}, {norm}, {backend}", capture)
        scheduler = Scheduler(batch, max_waiting_rows=count)
        for solver in solvers:
            where = f"{name}, {norm}, {backend}, {solver}"
            yield from check_counts(where, scheduler, expected[solver], solver, rows)
            if norm == ResidualNorm.RELATIVE and batch.offers_label_stop(solver):  # which have a norm of their own
                labels = fixed_labels(reference, rows.inputs) if labels is None else labels
                yield check_labels(where, scheduler, solver, rows.inputs, labels)
    for low, batch, capture in in_low_precision(jfb.load(version, device), device) if norm == ResidualNorm.RELATIVE else ():
        yield check_captures(f"{name}, {low}", capture)
        scheduler = Scheduler(batch, max_waiting_rows=count)
        for solver in solvers:
            yield from check_low_precision(f"{name}, {low}, {solver}", scheduler, reference, solver, rows.inputs[:SLOTS])


def captures(device: torch.device) -> Capture:
    return CudaGraphs(device) if device.type == "cuda" else eager


def check_captures(where: str, capture: Capture) -> Finding:
    return Finding(f"{where}: failed captures", float(isinstance(capture, CudaGraphs) and capture.failure is not None), 0.0)


def in_low_precision(checkpoint: Checkpoint, device: torch.device) -> Iterator[tuple[str, RunningBatch, Capture]]:
    """Yield batches whose rows start in each low precision that there is, iterated as on a GPU."""
    for name, low in low_precision(checkpoint, device, captured=True).items():
        capture, rows = captures(device), (ResidualNorm.RELATIVE, checkpoint.config.input.shape)
        backend = TorchBackend(checkpoint.network, device)
        batch = RunningBatch(backend, checkpoint.solvers, *rows, slots=SLOTS, low_precision=low)
        batch.measure(time.perf_counter, Masking((1, 2, 4), BLOCKS, capture, reads_out=True))
        yield name, batch, capture


def predict(reference: Checkpoint, solver: str, rows: Rows) -> Prediction:
    """Compute the rows without an engine."""
    return jfb.predict(
        reference.network,
        torch.from_numpy(rows.inputs).double(),
        tolerance=torch.from_numpy(rows.tolerance),
        max_iterations=torch.from_numpy(rows.cap),
        residual_norm=reference.config.serving.residual_norm,
        solver=SOLVERS[solver](),
    )


def check_counts(where: str, scheduler: Scheduler, expected: Prediction, solver: str, rows: Rows) -> Iterator[Finding]:
    """Compare rows in company with float64, and with themselves alone."""
    together = compute(scheduler, rows.inputs, rows.tolerance, rows.cap, solver)
    counts = zip(expected.solution.iterations.tolist(), expected.solution.status, strict=True)
    found = [(request.iterations[0], request.status[0]) for request in together]
    same = np.array([one == other for one, other in zip(found, counts, strict=True)])
    yield Finding(f"{where}: share of different counts or statuses", float(np.mean(~same)), DIFFERENT_COUNTS)
    logits = torch.from_numpy(np.concatenate([request.logits for request in together]).astype(np.float64))
    allowed = AMPLIFIED if solver == "anderson" else 10 * ROUNDING
    yield Finding(f"{where}: logits", error(logits[same], expected.logits[same]), allowed)
    few = [slice(i, i + 1) for i in range(min(4, len(together)))]
    alone = [compute(scheduler, rows.inputs[i], rows.tolerance[i], rows.cap[i], solver)[0] for i in few]
    pairs = [*zip(alone, together, strict=False)]
    different = [one.iterations != other.iterations or one.status != other.status for one, other in pairs]
    yield Finding(f"{where}: share of different counts or statuses alone", float(np.mean(different)), 0.0)
    moved = max(float(np.abs(one.logits - other.logits).max()) for one, other in pairs)
    allowed = AMPLIFIED if solver == "anderson" else ROUNDING / 10
    yield Finding(f"{where}: logits alone", moved / max(1.0, float(logits.abs().max())), allowed)


def check_low_precision(
    where: str, scheduler: Scheduler, reference: Checkpoint, solver: str, inputs: np.ndarray
) -> Iterator[Finding]:
    """Compare rows that start in low precision, and converge, with float64."""
    rows = Rows(inputs, np.full(len(inputs), NEAR), np.full(len(inputs), 200))
    expected = predict(reference, solver, rows)
    requests = compute(scheduler, rows.inputs, rows.tolerance, rows.cap, solver)
    same = np.array([request.status[0] == status for request, status in zip(requests, expected.solution.status, strict=True)])
    yield Finding(f"{where}: share of different statuses", float(np.mean(~same)), DIFFERENT_COUNTS)
    logits = torch.from_numpy(np.concatenate([request.logits for request in requests]).astype(np.float64))
    near = same & (np.array(expected.solution.status) == Status.CONVERGED)
    yield Finding(f"{where}: logits", error(logits[near], expected.logits[near]), AMPLIFIED)


def fixed_labels(reference: Checkpoint, inputs: np.ndarray) -> np.ndarray:
    fixed = jfb.predict(reference.network, torch.from_numpy(inputs).double(), tolerance=1e-8, max_iterations=5000)
    return fixed.logits.argmax(1).numpy()


def check_labels(where: str, scheduler: Scheduler, solver: str, inputs: np.ndarray, labels: np.ndarray) -> Finding:
    """Compare labels with label stops with those of the fixed points."""
    rows = len(inputs)
    requests = compute(scheduler, inputs, np.full(rows, 1e-5), np.full(rows, 1000), solver, "label")
    found = np.array([request.logits[0].argmax() for request in requests])
    return Finding(f"{where}: share of different labels", float(np.mean(found != labels)), 0.0)


def compute(
    scheduler: Scheduler, inputs: np.ndarray, tolerance: np.ndarray, cap: np.ndarray, solver: str, stop: Stop = "tolerance"
) -> list[RunningRequest]:
    """Compute one request per row, while the rows of others come and go."""
    requests = [
        RunningRequest(
            number,
            Request("model", 1, row.tobytes(), [float(tolerance[number])], [int(cap[number])], [None], solver=solver, stop=stop),
            inputs.shape[1:],
        )
        for number, row in enumerate(inputs)
    ]
    arrivals = itertools.cycle((1, 3, 0, 2))
    waiting = [*requests]
    while waiting or scheduler.busy:
        for _ in range(next(arrivals)):
            if waiting:
                scheduler.submit(waiting.pop(0))
        scheduler.tick(0.0)
    return requests


def main(
    device: Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda, cuda:1, ...")] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Inputs per network.")] = 32,
    networks: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(NETWORKS),
    norms: Annotated[
        str, typer.Option(help="Separated by commas, the most important first.")
    ] = "relative,absolute,channel_max,max",
) -> None:
    """Check all promises, and print those that are broken."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    on = choose_device(device)
    with tempfile.TemporaryDirectory() as folder:
        checks = {
            f"{name}, {norm}": check(name, ResidualNorm(norm), on, rows, Path(folder))
            for norm, name in itertools.product(norms.split(","), networks.split(","))
        }
        sys.exit(run_checks(checks, show_all=False))


if __name__ == "__main__":
    typer.run(main)
