"""Masked iterations as a GPU captures them: without a look from the host, once for each bucket and block."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.engine.backends import BFloat16Backend, TorchBackend
from app.engine.batch import RunningBatch
from app.engine.capture_trial import difference
from app.engine.graphs import Capture, CudaGraphs, Run, eager, why_not_captured
from app.engine.lane import MAX_SECONDS_BETWEEN_LOOKS
from app.engine.loading import make_batch
from app.engine.masked import MaskedIterations, Masking
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine.slots import SlotTable
from app.engine.warm_starts import WarmStarts
from app.settings import EngineConfig
from jfb import ImplicitNetwork, LabelStop, ResidualNorm, checkpoint, predict
from jfb.label_stop import Kind
from jfb.mixed_precision import low_precision_step
from jfb.monotone_network import MonotoneNetwork
from jfb.solvers import Anderson, ForwardBackward, Mixing, PeacemanRachford, Picard, Solver
from tests.app.engine.geometric import Geometric, every, make_request, state_after, tick_until_idle
from tests.app.engine.recorded import recorded
from tests.app.engine.requests import pictures, running_request
from tests.jfb.networks import small_mlp, small_monotone_conv, small_monotone_mlp, small_resnet

SLOTS = 4


def mixing(channels: int) -> Mixing:
    found = Mixing(torch.eye(channels), torch.full((channels,), 0.3), 0.8)
    for name in ("matrix", "momentum", "_one_and_momentum"):
        setattr(found, name, getattr(found, name).to("meta"))
    return found


@pytest.mark.parametrize("low_precision", [False, True], ids=["full", "low"])
@pytest.mark.parametrize(
    ("solver", "norm"),
    [*((Picard, norm) for norm in ResidualNorm), (Anderson, ResidualNorm.RELATIVE), (Mixing, ResidualNorm.MAX)],
)
@pytest.mark.parametrize(("make", "shape"), [(small_resnet, (1, 6, 6)), (small_mlp, (5,))], ids=["resnet", "mlp"])
def test_the_host_looks_at_nothing_while_a_block_is_computed(
    make: Callable[[], ImplicitNetwork], shape: tuple[int, ...], solver: type[Solver], norm: ResidualNorm, low_precision: bool
) -> None:
    """On the meta device tensors have no values: whatever would look at one raises, and so does a shape that depends on one."""
    network = make().float().requires_grad_(False).to("meta")
    low = deepcopy(network).bfloat16()
    inputs = torch.zeros(SLOTS, *shape, device="meta")
    injection = network.inject(inputs)
    point = network.initial_state(injection)
    algorithm = mixing(point.shape[1]) if solver is Mixing else solver()
    stop = None if low_precision or norm is ResidualNorm.CHANNEL_MAX else LabelStop(Kind.ESTIMATE, 1.0)
    memory = algorithm.start(point) | (stop.start(point) if stop is not None else {})
    runs: list[Run] = []

    def capture(run: Run) -> Run:
        runs.append(run)
        return run

    MaskedIterations(
        SlotTable(point, injection, memory),
        algorithm,
        norm,
        (lambda _, *rows: low_precision_step(low, *rows)) if low_precision else (lambda _, *rows: network.step(*rows)),
        network.readout,
        label_stop=stop,
        low_precision=low_precision,
        masking=Masking((1, 2), (1, 4), capture, reads_out=True),
    )
    assert len(runs) == 3 * 2 * (1 if stop is None else 2)
    with torch.inference_mode():
        for run in runs:
            run()


@pytest.mark.parametrize("solver", [ForwardBackward, PeacemanRachford])
@pytest.mark.parametrize(("make", "shape"), [(small_monotone_conv, (1, 6, 8)), (small_monotone_mlp, (5,))], ids=["conv", "mlp"])
def test_nor_does_it_look_at_what_a_solver_that_splits_the_map_remembers(
    make: Callable[[], MonotoneNetwork], shape: tuple[int, ...], solver: type[Solver]
) -> None:
    network, algorithm = make().float().requires_grad_(False).to("meta"), solver()
    injection = network.inject(torch.zeros(SLOTS, *shape, device="meta"))
    point = network.initial_state(injection)
    table = SlotTable(point, injection, algorithm.start(point))

    def capture(run: Run) -> Run:
        run()
        return run

    evaluate, masking = partial(algorithm.evaluate, network), Masking((1, 2), (1, 4), capture, reads_out=True)
    MaskedIterations(table, algorithm, ResidualNorm.RELATIVE, evaluate, network.readout, masking=masking)


def test_the_smallest_bucket_that_holds_the_rows_is_computed_as_it_was_captured() -> None:
    calls: Counter[tuple[int, ...]] = Counter()

    def capture(run: Run) -> Run:
        assert isinstance(run, partial)

        def replay() -> None:
            calls[run.args] += 1
            run()

        return replay

    backend = TorchBackend(Geometric(), dtype=torch.float64)
    batch = RunningBatch(backend, {"picard": Picard()}, ResidualNorm.ABSOLUTE, (2,), slots=6)
    batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 9), Masking((1, 2, 4), (1, 4, 8), capture))
    scheduler = Scheduler(batch, max_waiting_rows=9)
    calls.clear()
    for rows, iterations in ((1, 8), (2, 3), (3, 4), (5, 2)):
        scheduler.submit(make_request(rows, [iterations] * rows))
        (request,) = tick_until_idle(scheduler)
        assert request.iterations == [iterations] * rows
    assert calls == {(1, 8, False): 1, (2, 8, False): 1, (4, 8, False): 1, (6, 8, False): 1}
    assert scheduler.step_evaluations == 8 * (1 + 2 + 4 + 6)
    assert scheduler.wasted_iterations == scheduler.step_evaluations - (1 * 8 + 2 * 3 + 3 * 4 + 5 * 2)


@pytest.mark.parametrize("session", [None, "a"])
def test_a_row_is_answered_while_the_next_block_is_computed_unless_the_next_rows_start_where_it_ended(
    session: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    end = RunningRequest.end

    def noted_end(request: RunningRequest, *result: Any) -> None:
        events.append(f"answer {request.number}")
        end(request, *result)

    def capture(run: Run) -> Run:
        def replay() -> None:
            events.append("block")
            run()

        return replay

    monkeypatch.setattr(RunningRequest, "end", noted_end)
    batch = RunningBatch(
        TorchBackend(Geometric(), dtype=torch.float64), {"picard": Picard()}, ResidualNorm.ABSOLUTE, (2,), slots=2
    )
    batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 2.5), Masking((1,), (1, 2), capture, reads_out=True))
    scheduler = Scheduler(batch, max_waiting_rows=9, warm_starts=WarmStarts(10**6, 60))
    events.clear()
    for number, iterations in ((1, 2), (2, 6), (3, 2)):
        scheduler.submit(make_request(number, [iterations], session=session if number in (1, 3) else None))
    finished = {request.number: request for _ in range(2) for request in scheduler.tick(0.0)}
    assert events == (["block", "block", "answer 1"] if session is None else ["block", "answer 1", "block"])
    finished |= {request.number: request for request in tick_until_idle(scheduler)}
    assert {number: request.iterations for number, request in finished.items()} == {1: [2], 2: [6], 3: [1 if session else 2]}
    assert [finished[number].logits[0, 0] for number in (1, 2)] == [state_after(2), state_after(6)]
    assert scheduler.step_evaluations == scheduler.iterations + scheduler.wasted_iterations


class Injecting(TorchBackend):
    """Notes how many rows are injected."""

    events: list[str]

    def inject(self, inputs: Tensor) -> Tensor:
        self.events.append(f"inject {len(inputs)}")
        return super().inject(inputs)


@pytest.mark.parametrize("cancelled", [set(), {5}, {5, 6}])
def test_rows_are_injected_while_a_block_is_computed_and_take_the_slots_of_those_that_end_in_it(cancelled: set[int]) -> None:
    backend, events = Injecting(Geometric(), dtype=torch.float64), list[str]()
    backend.events = events

    def capture(run: Run) -> Run:
        def replay() -> None:
            events.append("block")
            run()

        return replay

    batch = RunningBatch(backend, {"picard": Picard()}, ResidualNorm.ABSOLUTE, (2,), slots=2)
    batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 2.5), Masking((1,), (1, 2), capture, reads_out=True))
    scheduler = Scheduler(batch, max_waiting_rows=9)
    events.clear()
    wanted = {1: 2, 2: 2, 3: 4, 4: 4, 5: 3, 6: 2, 7: 5}
    for number, iterations in wanted.items():
        scheduler.submit(make_request(number, [iterations]))
    finished = scheduler.tick(0.0) + scheduler.tick(0.0)
    assert events == ["inject 2", "block", "inject 2", "block", "inject 2"]
    assert (scheduler.active_rows, scheduler.waiting_rows) == (2, 1)
    for number in cancelled:
        scheduler.cancel(number)
    finished += scheduler.tick(0.0) + scheduler.tick(0.0)
    assert events[5:] == (["block", "inject 1", "block"] if cancelled else ["block", "block", "inject 1"])
    finished += tick_until_idle(scheduler)
    assert {request.number for request in finished} == wanted.keys() - cancelled
    for request in finished:
        assert request.iterations == [wanted[request.number]]
        assert request.logits[0, 0] == state_after(wanted[request.number])


class OutOfMemory(TorchBackend):
    """Raises at some calls of ``step``, whatever the rows are."""

    calls = 0
    fails_at: frozenset[int] = frozenset()

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        self.calls += 1
        if self.calls in self.fails_at:
            raise RuntimeError("out of memory")
        return super().step(state, injection)


@pytest.mark.parametrize("fails_at", [{1}, {2}, {3}, {4, 5}, {3, 4}, {9}])
def test_a_block_that_raises_is_as_long_as_it_was_computed(fails_at: set[int]) -> None:
    backend = OutOfMemory(Geometric(), dtype=torch.float64)
    batch = RunningBatch(backend, {"picard": Picard()}, ResidualNorm.ABSOLUTE, (2,), slots=4)
    batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 5), Masking((1, 2), (1, 4), reads_out=True))
    scheduler = Scheduler(batch, max_waiting_rows=9)
    backend.calls, backend.fails_at = 0, frozenset(fails_at)
    wanted = {1: 1, 2: 3, 3: 7, 4: 9}
    for number, iterations in wanted.items():
        scheduler.submit(make_request(number, [iterations]))
    for request in tick_until_idle(scheduler):
        assert request.failure is None
        assert request.iterations == [wanted[request.number]]
        assert request.logits[0, 0] == state_after(wanted[request.number])
    assert scheduler.step_evaluations == scheduler.iterations + scheduler.wasted_iterations


@pytest.mark.parametrize("low_precision", [False, True], ids=["full", "low"])
@pytest.mark.parametrize("norm", list(ResidualNorm))
@pytest.mark.parametrize(
    ("make", "shape", "solver"),
    [(small_resnet, (1, 6, 6), Picard), (small_mlp, (5,), Picard), (small_monotone_conv, (1, 6, 8), ForwardBackward)],
)
def test_blocks_depend_on_nothing_but_the_tensors_that_they_were_captured_with(
    make: Callable[[], ImplicitNetwork], shape: tuple[int, ...], solver: type[Solver], norm: ResidualNorm, low_precision: bool
) -> None:
    """Recorded operations are replayed: not of what computes otherwise on a CPU than on a GPU, as Anderson and label stops do."""
    network = make().float().requires_grad_(False)
    inputs = np.random.default_rng(0).uniform(0, 1, (20, *shape)).astype(np.float32)
    found: list[list[tuple[object, ...]]] = []
    for capture in (eager, recorded):
        batch = RunningBatch(
            TorchBackend(network),
            {"one": solver()},
            norm,
            shape,
            slots=SLOTS,
            low_precision=BFloat16Backend(deepcopy(network), torch.device("cpu")) if low_precision else None,
        )
        batch.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 5), Masking((1, 2), (1, 4), capture, reads_out=True))
        scheduler = Scheduler(batch, max_waiting_rows=99)
        for row in range(20):
            limits = inputs[row : row + 1], [10.0 ** -(row % 4)], [30], [None]
            scheduler.submit(running_request(row, *limits))
        requests = sorted(tick_until_idle(scheduler), key=lambda request: request.number)
        found.append([(one.iterations, one.status, one.residual, one.logits.tolist()) for one in requests])
    assert found[0] == found[1]
    assert len({iterations for (iterations,), *_ in found[0]}) > 3, "the rows should not be equally hard"


class Skipping:
    """A capture that goes wrong without an error: some of what it returns computes nothing."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, run: Run) -> Run:
        self.captured += 1
        return run if self.captured % 2 else lambda: None


def test_a_trial_finds_out_whether_captured_iterations_compute_the_same() -> None:
    def batch(capture: Capture) -> RunningBatch:
        backend = TorchBackend(small_mlp().float().requires_grad_(False))
        found = RunningBatch(backend, {"picard": Picard(), "anderson": Anderson()}, ResidualNorm.RELATIVE, (5,), slots=6)
        found.measure(every(MAX_SECONDS_BETWEEN_LOOKS / 9), Masking((1, 2, 4), (1, 4), capture, reads_out=True))
        return found

    probe = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    assert difference(batch(eager), batch(eager), probe) == ""
    assert "logits of 1 rows differ by" in difference(batch(Skipping()), batch(eager), probe)


@pytest.mark.slow
def test_where_there_is_no_gpu_the_trial_says_why_nothing_is_captured(store: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    reason = why_not_captured(store / "digits" / "1", torch.device("cuda"), EngineConfig(model_store=store))
    assert "CUDA" in reason or "NVIDIA" in reason  # as the builds of torch without and with CUDA say


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("deterministic", [False, True])
def test_on_a_gpu_graphs_answer_as_predict_does(store: Path, deterministic: bool) -> None:
    device, folder, config = torch.device("cuda"), store / "digits" / "1", EngineConfig(slots=16, deterministic=deterministic)
    assert why_not_captured(folder, device, config) == ""
    found, graphs = checkpoint.load(folder, device), CudaGraphs(device)
    batch = make_batch(found, folder, device, config, graphs)
    assert graphs.failure is None
    inputs = pictures(40)
    for solver in found.solvers:
        scheduler = Scheduler(batch, max_waiting_rows=99)
        wasted = scheduler.wasted_iterations
        for row in range(40):
            scheduler.submit(running_request(row, inputs[row : row + 1], [10.0 ** -(row % 5)], [50], [None], solver=solver))
        requests = sorted(tick_until_idle(scheduler), key=lambda request: request.number)
        tolerance = torch.tensor([10.0 ** -(row % 5) for row in range(40)], device=device)
        on_device = torch.from_numpy(inputs).to(device)
        expected = predict(found.network, on_device, tolerance=tolerance, max_iterations=50, solver=found.solvers[solver])
        counts = np.array([request.iterations[0] for request in requests])
        assert np.abs(counts - expected.solution.iterations.cpu().numpy()).max() <= 1
        assert np.concatenate([request.logits for request in requests]) == pytest.approx(expected.logits.cpu().numpy(), abs=1e-3)
        assert scheduler.step_evaluations == scheduler.iterations + scheduler.wasted_iterations - wasted
