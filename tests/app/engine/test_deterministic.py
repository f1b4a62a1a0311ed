"""JFB_DETERMINISTIC: what the engine answers does not depend on a row's company, to the last bit."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import jfb
from app.engine.backends import FixedBatch, TorchBackend
from app.engine.batch import RunningBatch
from app.engine.loading import make_batch
from app.engine.masked import Masking
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler
from app.engine_client.messages import Request, Stop
from app.settings import BackendName, EngineConfig
from jfb import ImplicitNetwork, ModelConfig, ResidualNorm, checkpoint
from jfb.solvers import SOLVERS, Mixing
from jfb.store import new_version
from tests.app.engine.geometric import tick_until_idle
from tests.app.engine.requests import pictures, running_request
from tests.app.engine.test_supervisor import running
from tests.app.store import DIGITS, network_of
from tests.jfb.networks import small_monotone_conv, small_resnet

ROWS = 24
ODD = ModelConfig.model_validate(
    {
        "architecture": {"name": "implicit_mlp", "arguments": {"width": 6, "contraction": 0.9}},
        "input": {"shape": [5], "kind": "vector"},
        "classes": ["no", "yes"],
    }
)
Facts = tuple[Any, ...]


def facts(request: RunningRequest) -> Facts:
    """All that a response consists of."""
    numbers = request.logits.tobytes(), request.iterations, request.residual, request.margin, request.bound
    return request.failure, *numbers, request.status


def answers(
    scheduler: Scheduler, inputs: NDArray[np.float32], solver: str, order: list[list[int]], stop: Stop = "tolerance"
) -> dict[int, Facts]:
    """What each row got; those of one list are in flight together."""
    found: dict[int, Facts] = {}
    for together in order:
        for row in together:
            limits = [10.0 ** -(1 + row % 5)], [3 if row % 7 == 0 else 200], [None]
            scheduler.submit(running_request(row, inputs[row : row + 1], *limits, solver=solver, stop=stop))
        found |= {request.number: facts(request) for request in tick_until_idle(scheduler)}
    return found


def orders() -> list[list[list[int]]]:
    """Alone; together, in two orders; in two random parts; alone again."""
    rows = list(range(ROWS))
    shuffled = np.random.default_rng(1).permutation(ROWS).tolist()
    return [[[row] for row in rows], [rows], [rows[::-1]], [shuffled[:5], shuffled[5:]], [[row] for row in rows]]


@pytest.mark.parametrize(
    ("solver", "stop", "backend", "slots"),
    [
        ("picard", "tolerance", "auto", 5),
        ("picard", "label", "folded", 16),
        ("anderson", "label", "auto", 5),
        ("mixing", "tolerance", "auto", 16),
    ],
)
def test_a_row_gets_the_same_bits_alone_and_in_any_company(solver: str, stop: Stop, backend: BackendName, slots: int) -> None:
    network = network_of(DIGITS, 1).eval().requires_grad_(False)
    network.latent.weight.data[:, :, 1, 1] += 3 * torch.eye(8)  # type: ignore[index, union-attr]
    network.constrain()
    torch.manual_seed(0)
    mixing = Mixing(1.2 * torch.eye(8) + 0.05 * torch.randn(8, 8), torch.full((8,), 0.05), 0.85)
    config = EngineConfig(slots=slots, backend=backend, deterministic=True)
    batch = make_batch(jfb.Checkpoint(DIGITS, network, mixing), Path(), torch.device("cpu"), config)
    scheduler = Scheduler(batch, max_waiting_rows=ROWS)
    alone, *others = (answers(scheduler, pictures(ROWS), solver, order, stop) for order in orders())
    assert all(other == alone for other in others)
    assert len({row[2][0] for row in alone.values()}) > 3, "the rows should not be equally hard"
    assert scheduler.step_evaluations == scheduler.iterations + scheduler.wasted_iterations


class Raises(ImplicitNetwork):
    """A network that cannot step from injections above a million."""

    def __init__(self, network: ImplicitNetwork) -> None:
        super().__init__()
        self.network = network

    def inject(self, inputs: Tensor) -> Tensor:
        return self.network.inject(inputs)

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        if bool((injection > 1e6).any()):
            raise ArithmeticError("too large")
        return self.network.step(state, injection)

    def readout(self, state: Tensor) -> Tensor:
        return self.network.readout(state)


def deterministic(network: ImplicitNetwork, solver: str, shape: tuple[int, ...]) -> Scheduler:
    backend = FixedBatch(TorchBackend(network.float().requires_grad_(False)), 5)
    batch = RunningBatch(backend, {solver: SOLVERS[solver]()}, ResidualNorm.RELATIVE, shape, slots=5)
    batch.measure(time.perf_counter, Masking())
    return Scheduler(batch, max_waiting_rows=ROWS)


@pytest.mark.parametrize("solver", ["forward_backward", "peaceman_rachford"])
def test_so_it_does_with_a_solver_that_splits_the_map(solver: str) -> None:
    shape = 1, 6, 8
    scheduler = deterministic(small_monotone_conv(), solver, shape)
    inputs = np.random.default_rng(0).uniform(0, 1, (ROWS, *shape)).astype(np.float32)
    alone, *others = (answers(scheduler, inputs, solver, order) for order in orders()[:4])
    assert all(other == alone for other in others)


def test_so_it_does_in_the_company_of_rows_that_raise() -> None:
    scheduler = deterministic(Raises(small_resnet()), "anderson", (1, 6, 6))
    inputs = np.random.default_rng(0).uniform(0, 1, (ROWS, 1, 6, 6)).astype(np.float32)
    inputs[3::8] = 1e9
    alone, *others = (answers(scheduler, inputs, "anderson", order) for order in orders()[:4])
    assert [row for row, (failure, *_) in alone.items() if failure] == [3, 11, 19]
    good = {row: found for row, found in alone.items() if row % 8 != 3}
    assert all({row: other[row] for row in good} == good for other in others)
    assert all(other[row][0] for other in others for row in (3, 11, 19))


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("device", ["cpu", "cuda"])
async def test_an_engine_process_answers_the_same_bits_alone_together_and_again(device: str, tmp_path: Path) -> None:
    """Also with a matrix of odd sides, whose products depend on where in memory a row lies unless MKL is kept from it."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for name, config in (("digits", DIGITS), ("odd", ODD)):
        with new_version(tmp_path / "store", name) as folder:
            checkpoint.save(folder, config, network_of(config, 1))
    vectors = np.random.default_rng(0).uniform(-1, 1, (12, 5)).astype(np.float32)
    async with running(tmp_path / "store", tmp_path, device=device, deterministic=True, slots=5) as one:

        async def ask(model: str, inputs: NDArray[np.float32]) -> tuple[bytes, list[int], list[float]]:
            rows = len(inputs)
            request = Request(model, 1, inputs.tobytes(), [1e-4] * rows, [40] * rows, [None] * rows)
            found = await one.engines.predict(request)
            return found.logits, list(found.iterations), list(found.residual)

        for model, inputs in (("digits", pictures(12)), ("odd", vectors)):
            logits, iterations, residual = await ask(model, inputs)
            size = len(logits) // len(inputs)
            expected = [(logits[k * size :][:size], iterations[k : k + 1], residual[k : k + 1]) for k in range(len(inputs))]
            assert [await ask(model, row[None]) for row in inputs] == expected
            assert await asyncio.gather(*(ask(model, row[None]) for row in inputs)) == expected
            assert await asyncio.gather(*(ask(model, row[None]) for row in inputs[::-1])) == expected[::-1]
