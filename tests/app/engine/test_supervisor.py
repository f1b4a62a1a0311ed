"""Client and supervisor around a real engine process, which is stopped, killed and starved."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from app.engine_client.supervisor import EngineSupervisor

from app.engine_client.client import Computed
from app.engine_client.errors import EngineDied, NotServed, QueueFull
from app.engine_client.messages import Question
from tests.app.engine.requests import ask, assert_right, pictures, slow

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@pytest.fixture(scope="module")
async def engine(store: Path, anyio_backend: str) -> AsyncIterator[EngineSupervisor]:
    engine = EngineSupervisor(store, "cpu", 16, 256, "iteration", 1, precision="float32")
    await engine.start()
    yield engine
    await engine.stop()


async def active_rows(engine: EngineSupervisor, model: str = "slow") -> int:
    state = await engine.client.look(30)
    return sum(counters.active_rows + counters.waiting_rows for counters in state.counters if counters.model == model)


async def ready_again(engine: EngineSupervisor, restarts: int) -> None:
    async with asyncio.timeout(60):
        while not (engine.ready and engine.restarts > restarts):
            await asyncio.sleep(0.02)


async def test_rows_get_the_same_alone_together_and_among_others_with_other_tolerances(
    engine: EngineSupervisor, store: Path
) -> None:
    inputs = pictures(64)
    before = (await engine.client.look(30)).counters[0]
    alone = [await ask(engine.client, row[None]) for row in inputs]
    assert_right(store, inputs, alone, [1e-4] * 64)

    together = await ask(engine.client, inputs)
    assert together.status == [answer.status[0] for answer in alone]
    assert together.logits == pytest.approx(np.concatenate([answer.logits for answer in alone]), abs=1e-5)

    tolerance = [1e-1 if k % 2 else 1e-4 for k in range(64)]
    mixed = await asyncio.gather(
        *(ask(engine.client, row[None], epsilon) for row, epsilon in zip(inputs, tolerance, strict=True))
    )
    assert_right(store, inputs, mixed, tolerance)

    after = (await engine.client.look(30)).counters[0]
    reported = sum(answer.iterations[0] for answer in (*alone, *mixed)) + sum(together.iterations)
    assert after.step_evaluations - before.step_evaluations == after.iterations - before.iterations == reported
    assert after.rows_ended - before.rows_ended == 3 * 64


async def test_cancelling_a_request_drops_its_rows_in_the_engine(engine: EngineSupervisor) -> None:
    request = slow(engine.client, cap=10**9, rows=3)
    while await active_rows(engine) < 3:
        await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    while await active_rows(engine):
        await asyncio.sleep(0.01)


async def test_a_deadline_ends_a_request_with_what_it_has(engine: EngineSupervisor) -> None:
    answer = await slow(engine.client, cap=10**9, deadline=time.monotonic() + 0.2)
    assert answer.status == ["deadline"]
    assert answer.iterations[0] > 1
    assert np.isfinite(answer.logits).all()


async def test_a_full_queue_raises_with_its_numbers(engine: EngineSupervisor) -> None:
    first = slow(engine.client, cap=10**9, rows=250)
    while not await active_rows(engine):
        await asyncio.sleep(0)
    with pytest.raises(QueueFull) as refusal:
        await slow(engine.client, cap=1, rows=100)
    assert refusal.value.max_waiting_rows == 256
    assert 250 - 16 <= refusal.value.waiting_rows <= 250
    assert refusal.value.retry_after > 0
    first.cancel()


async def test_an_unknown_version_is_not_served(engine: EngineSupervisor) -> None:
    with pytest.raises(NotServed):
        await engine.client.predict(Question("digits", 9, [1.0], [1], [None]), pictures(1))


async def test_a_diverging_row_is_answered(engine: EngineSupervisor) -> None:
    inputs = np.array([[0.0, 0.0], [1.0, 1.0]])
    answer = await engine.client.predict(Question("wild", 1, [1e-3] * 2, [50] * 2, [None] * 2), inputs)
    assert answer.status == ["converged", "diverged"]


async def test_a_killed_engine_comes_back_and_every_request_ends(engine: EngineSupervisor, store: Path) -> None:
    restarts = engine.restarts
    inputs = pictures(64)
    outcomes: list[Computed | BaseException] = []

    async def keep_asking(k: int) -> None:
        while engine.restarts == restarts:
            outcomes.append(*await asyncio.gather(ask(engine.client, inputs[k][None]), return_exceptions=True))
            await asyncio.sleep(0.002)

    stuck = slow(engine.client, cap=10**9)
    asking = [asyncio.create_task(keep_asking(k)) for k in range(64)]
    while len(outcomes) < 100:
        await asyncio.sleep(0)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDied):
        await stuck
    assert not engine.ready
    with pytest.raises(EngineDied):
        await ask(engine.client, inputs[:1])
    with pytest.raises(EngineDied):
        await engine.client.look(5)
    await asyncio.gather(*asking)
    assert {type(outcome) for outcome in outcomes} == {Computed, EngineDied}

    await ready_again(engine, restarts)
    answers = await asyncio.gather(*(ask(engine.client, row[None]) for row in inputs))
    assert_right(store, inputs, answers, [1e-4] * 64)


async def test_an_engine_that_hangs_is_killed_and_comes_back(store: Path) -> None:
    engine = EngineSupervisor(store, "cpu", 16, 256, threads=1, hang_timeout=4.0, precision="float32")
    await engine.start()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await engine.client.look(0.1)
    with pytest.raises(EngineDied):
        await ask(engine.client, pictures(1))
    await ready_again(engine, 0)
    assert (await ask(engine.client, pictures(1))).status == ["converged"]
    await engine.stop()


async def test_stopping_lets_requests_in_flight_end(store: Path) -> None:
    engine = EngineSupervisor(store, "cpu", 16, 256, threads=1, precision="float32")
    await engine.start()
    requests = [slow(engine.client, cap=2000) for _ in range(40)]
    while not await active_rows(engine):
        await asyncio.sleep(0)
    await engine.client.look(30)  # messages keep their order: all 40 have arrived
    await engine.stop(grace=60)
    assert [answer.iterations for answer in await asyncio.gather(*requests)] == [[2000]] * 40
    assert not engine.ready
    with pytest.raises(EngineDied):
        await ask(engine.client, pictures(1))


async def test_an_engine_that_cannot_start_is_tried_again_and_can_be_stopped(store: Path) -> None:
    engine = EngineSupervisor(store, "no such device", 16, 256, threads=1, precision="float32")
    starting = asyncio.create_task(engine.start())
    async with asyncio.timeout(60):
        while not engine.restarts:
            await asyncio.sleep(0.02)
    assert not starting.done()
    assert not engine.ready
    with pytest.raises(EngineDied):
        await ask(engine.client, pictures(1))
    starting.cancel()
    await engine.stop()


PARENT = """
import asyncio, pathlib, sys
from app.engine_client.supervisor import EngineSupervisor

async def main():
    engine = EngineSupervisor(pathlib.Path(sys.argv[1]), "cpu", 4, 16, threads=1)
    await engine.start()
    sys.stdout.write(f"{engine.pid}\\n")
    sys.stdout.flush()
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_no_engine_outlives_a_parent_that_is_killed(store: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, store], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = 0
        for line in parent.stdout:  # the log may come first
            if line.strip().isdecimal():
                pid = int(line)
                break
        parent.kill()
    async with asyncio.timeout(60):
        while _alive(pid):
            await asyncio.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_the_http_side_of_the_engine_does_not_import_torch() -> None:
    command = "import sys, app.engine_client.supervisor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
