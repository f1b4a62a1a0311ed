"""The engine on an emulated GPU: the code that only a GPU runs, its graphs, and what waits for it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.engine import graphs
from app.engine.backends import BFloat16Backend, TF32Backend, TorchBackend
from app.engine.batch import RunningBatch
from app.engine.graphs import CudaGraphs, eager
from app.engine.lane import MAX_SECONDS_BETWEEN_LOOKS
from app.engine.loading import make_batch
from app.engine.masked import Masking
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine_client.messages import Stop
from app.settings import EngineConfig
from jfb import ImplicitNetwork, LabelStop, ResidualNorm, Status, checkpoint, predict
from jfb.label_stop import Kind
from jfb.solvers import SOLVERS, Mixing, Picard, Solver
from tests.app.engine.geometric import every, tick_until_idle
from tests.app.engine.requests import pictures, running_request
from tests.emulated_gpu import CPU, GPU, emulated_gpu, waits
from tests.jfb.networks import small_max_propagation, small_mlp, small_monotone_conv, small_monotone_mlp, small_resnet

ROWS = 24
TOLERANCES = [10.0 ** -(row % 5) for row in range(ROWS)]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(graphs, "WARM_UPS", 1)  # an emulated one has nothing to warm up
    with emulated_gpu():
        yield


NETWORKS: dict[str, tuple[Callable[[], ImplicitNetwork], tuple[int, ...]]] = {
    "mlp": (small_mlp, (5,)),
    "resnet": (small_resnet, (1, 6, 6)),
    "max_propagation": (small_max_propagation, (1, 6, 6)),
    "monotone_mlp": (small_monotone_mlp, (5,)),
    "monotone_conv": (small_monotone_conv, (1, 6, 8)),
}

STOPS: tuple[Stop, ...] = "tolerance", "label"
NORMS = itertools.cycle(ResidualNorm)
COMBINATIONS = [
    (name, solver, stop, next(NORMS))
    for name, solver, stop in itertools.product(NETWORKS, SOLVERS, STOPS)
    if solver not in ("forward_backward", "peaceman_rachford") or (name.startswith("monotone") and stop == "tolerance")
]


def make_solver(name: str, network: ImplicitNetwork, shape: tuple[int, ...], device: torch.device) -> Solver:
    if name != "mixing":
        return SOLVERS[name]()
    channels = network.initial_state(network.inject(torch.zeros(1, *shape, dtype=torch.float64))).shape[1]
    matrix, momentum = torch.eye(channels, dtype=torch.float64), torch.full((channels,), 0.1, dtype=torch.float64)
    return Mixing(matrix.to(device), momentum.to(device), 0.8)


def answers(
    batch: RunningBatch, inputs: NDArray[np.float32], tolerance: list[float], cap: int, **options: Any
) -> list[RunningRequest]:
    """What a request for each row comes to."""
    scheduler = Scheduler(batch, max_waiting_rows=len(inputs))
    for row, own in enumerate(tolerance):
        scheduler.submit(running_request(row, inputs[row : row + 1], [own], [cap], [None], **options))
    return sorted(tick_until_idle(scheduler), key=lambda request: request.number)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "solver", "stop", "norm"), COMBINATIONS)
def test_graphs_answer_as_predict_does_and_the_host_waits_only_for_what_a_block_has_come_to(
    name: str, solver: str, stop: Stop, norm: ResidualNorm
) -> None:
    make, shape = NETWORKS[name]
    reference, network = make().requires_grad_(False), make().requires_grad_(False)
    label_stop = LabelStop(Kind.ESTIMATE, 1.0, safety=1.5) if stop == "label" else None
    expected_solver, own_solver = (make_solver(solver, reference, shape, device) for device in (CPU, GPU))
    inputs = np.random.default_rng(0).uniform(0, 1, (ROWS, *shape)).astype(np.float32)

    capture, backend = CudaGraphs(GPU), TorchBackend(network, GPU, torch.float64)
    batch = RunningBatch(backend, {solver: own_solver}, norm, shape, slots=4, label_stop=label_stop)
    batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 5), Masking((1, 2), (1, 4), capture, reads_out=True))
    assert capture.failure is None
    waits.clear()
    requests = answers(batch, inputs, TOLERANCES, 60, solver=solver, stop=stop)
    assert waits.keys() == {"Event.synchronize"}

    expected = predict(
        reference,
        torch.from_numpy(inputs).double(),
        tolerance=torch.tensor(TOLERANCES, dtype=torch.float64),
        max_iterations=60,
        residual_norm=norm,
        solver=expected_solver,
        label_stop=label_stop,
    )
    assert [request.iterations[0] for request in requests] == expected.solution.iterations.tolist()
    assert [request.status[0] for request in requests] == expected.solution.status
    assert np.concatenate([request.logits for request in requests]) == pytest.approx(expected.logits.numpy(), abs=1e-9)
    assert stop == "tolerance" or Status.LABEL_STABLE in expected.solution.status


@pytest.mark.parametrize("low", [BFloat16Backend, TF32Backend])
def test_rows_go_on_from_low_precision_as_they_do_on_a_cpu(low: type[BFloat16Backend | TF32Backend]) -> None:
    make, shape = NETWORKS["resnet"]
    inputs = np.random.default_rng(0).uniform(0, 1, (ROWS, *shape)).astype(np.float32)
    found = []
    for device, capture in ((CPU, eager), (GPU, CudaGraphs(GPU))):
        full, rounded = (make().float().requires_grad_(False) for _ in range(2))
        batch = RunningBatch(
            TorchBackend(full, device), {"one": Picard()}, ResidualNorm.MAX, shape, slots=4, low_precision=low(rounded, device)
        )
        batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 5), Masking((1, 2), (1, 4), capture, reads_out=True))
        found.append(answers(batch, inputs, TOLERANCES, 60))
    on_cpu, on_gpu = ([(one.iterations, one.status) for one in requests] for requests in found)
    assert on_cpu == on_gpu
    expected, logits = (np.concatenate([one.logits for one in requests]) for requests in found)
    assert logits == pytest.approx(expected, abs=2e-3), "at a loose tolerance, a row ends where rounding has led it"


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_version_is_loaded_and_answers_as_predict_does(store: Path, deterministic: bool) -> None:
    folder, capture = store / "digits" / "1", CudaGraphs(GPU)
    reference, found = checkpoint.load(folder), checkpoint.load(folder, GPU)
    batch = make_batch(found, folder, GPU, EngineConfig(slots=4, deterministic=deterministic), capture)
    assert capture.failure is None
    inputs = pictures(ROWS)
    for solver in reference.solvers:
        requests = answers(batch, inputs, [1e-3] * ROWS, 50, solver=solver)
        expected = predict(
            reference.network, torch.from_numpy(inputs), tolerance=1e-3, max_iterations=50, solver=reference.solvers[solver]
        )
        counts = np.array([request.iterations[0] for request in requests])
        assert np.abs(counts - expected.solution.iterations.numpy()).max() <= 1
        assert np.concatenate([request.logits for request in requests]) == pytest.approx(expected.logits.numpy(), abs=1e-4)
