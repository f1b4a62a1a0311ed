"""Masked iterations as a GPU captures them: without a look from the host, once for each bucket and block."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch

from app.engine.backends import TorchBackend
from app.engine.batch import RunningBatch
from app.engine.graphs import Run
from app.engine.lane import MAX_SECONDS_BETWEEN_LOOKS
from app.engine.masked import MaskedIterations, Masking
from app.engine.scheduler import Scheduler
from app.engine.slots import SlotTable
from jfb import ImplicitNetwork, LabelStop, ResidualNorm
from jfb.label_stop import Kind
from jfb.mixed_precision import low_precision_step
from jfb.solvers import Anderson, Mixing, Picard, Solver
from tests.app.engine.geometric import Geometric, every, make_request, tick_until_idle
from tests.jfb.networks import small_mlp, small_resnet

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
