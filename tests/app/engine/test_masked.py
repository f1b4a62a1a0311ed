"""Masked iterations as a GPU captures them: without a look from the host, once for each bucket and block."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.capture_trial import difference
from app.engine.graphs import Capture, CudaGraphs, Run, eager, why_not_captured
from app.engine.lane import MAX_SECONDS_BETWEEN_LOOKS
from app.engine.loading import make_batch
from app.engine.masked import Masking
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine.warm_starts import WarmStarts
from app.settings import EngineConfig
from jfb import ResidualNorm, checkpoint, predict
from jfb.solvers import Anderson, Picard
from tests.app.engine.geometric import Geometric, every, make_request, state_after, tick_until_idle
from tests.app.engine.requests import pictures, running_request
from tests.jfb.networks import small_mlp

SLOTS = 4


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
