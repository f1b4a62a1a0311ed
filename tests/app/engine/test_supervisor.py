"""Clients and supervised engine processes, which are stopped, killed and starved."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from app.engine_client.client import Engines
from app.engine_client.errors import EngineUnavailable, NotServed, QueueFull
from app.engine_client.messages import Request, Result
from app.settings import EngineConfig, Settings
from app.supervisor.process import Command, ProcessStatus, SupervisedProcess, read_status
from app.supervisor.supervisor import Supervisor
from tests.app.engine.requests import assert_right, pictures, predict, slow

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

FOREVER = 10**9
CONFIG = {"device": "cpu", "slots": 16, "max_waiting_rows": 256, "threads": 1, "precision": "float32"}


@dataclass
class Running:
    """Supervised engines, and an HTTP worker's view of them."""

    engines: Engines
    processes: list[SupervisedProcess]
    status_files: list[Path]

    @property
    def status(self) -> ProcessStatus:
        return read_status(self.status_files[0])

    async def rows(self, number: int = 0, model: str = "slow") -> int:
        """Rows of a model in an engine's slots and queue."""
        state = (await self.engines.refresh(30))[number]
        return sum(counters.active_rows + counters.waiting_rows for counters in state.counters if counters.model == model)

    async def wait_for(self, number: int, restarts: int) -> None:
        """Return when an engine has been restarted and serves again."""
        async with asyncio.timeout(60):
            while read_status(self.status_files[number]).restarts <= restarts or number not in self.engines.states:
                await asyncio.sleep(0.02)

    def kill(self, number: int, signal: signal.Signals = signal.SIGKILL) -> None:
        pid = self.processes[number].pid
        assert pid is not None
        os.kill(pid, signal)


@asynccontextmanager
async def running(
    store: Path, folder: Path, *, number: int = 1, hang_seconds: float = 10.0, **settings: object
) -> AsyncIterator[Running]:
    """That many engines, all ready."""
    config = EngineConfig.model_validate(CONFIG | {"model_store": store} | settings).model_dump_json()
    sockets = [folder / f"{k}.sock" for k in range(number)]
    files = [folder / f"{k}.json" for k in range(number)]
    processes = [
        SupervisedProcess(Command("engine", k, "app.engine", [str(socket)], config, hang_seconds=hang_seconds), file)
        for k, (socket, file) in enumerate(zip(sockets, files, strict=True))
    ]
    for process in processes:
        process.start()
    try:
        async with Engines(sockets) as engines:
            async with asyncio.timeout(120):
                while len(engines.states) < number:
                    await asyncio.sleep(0.02)
            yield Running(engines, processes, files)
    finally:
        for process in processes:
            process.stop()
        await asyncio.gather(*(process.wait(10) for process in processes))


@pytest.fixture(scope="module")
async def one(store: Path, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Running]:
    async with running(store, tmp_path_factory.mktemp("one")) as one:
        yield one


@pytest.fixture(scope="module")
async def two(store: Path, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Running]:
    async with running(store, tmp_path_factory.mktemp("two"), number=2) as two:
        yield two


async def test_rows_get_the_same_alone_together_and_among_others_with_other_tolerances(one: Running, store: Path) -> None:
    inputs = pictures(64)
    before = (await one.engines.refresh(30))[0].counters[0]
    alone = [await predict(one.engines, row[None]) for row in inputs]
    assert_right(store, inputs, alone, [1e-4] * 64)

    together = await predict(one.engines, inputs)
    assert list(together.status) == [result.status[0] for result in alone]
    assert together.logits_array() == pytest.approx(np.concatenate([result.logits_array() for result in alone]), abs=1e-5)

    tolerance = [1e-1 if k % 2 else 1e-4 for k in range(64)]
    mixed = await asyncio.gather(
        *(predict(one.engines, row[None], epsilon) for row, epsilon in zip(inputs, tolerance, strict=True))
    )
    assert_right(store, inputs, mixed, tolerance)

    after = (await one.engines.refresh(30))[0].counters[0]
    reported = sum(result.iterations[0] for result in (*alone, *mixed)) + sum(together.iterations)
    assert after.step_evaluations - before.step_evaluations == after.iterations - before.iterations == reported
    assert after.rows_ended - before.rows_ended == 3 * 64


async def test_cancelling_a_request_drops_its_rows_in_the_engine(one: Running) -> None:
    request = slow(one.engines, cap=FOREVER, rows=3)
    while await one.rows() < 3:
        await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    while await one.rows():
        await asyncio.sleep(0.01)


async def test_closing_a_stream_drops_its_rows_in_the_engine(one: Running) -> None:
    stream = one.engines.stream(Request("slow", 1, np.ones(4, "<f4").tobytes(), [1e-30], [FOREVER], [None]))
    async for iteration in stream:
        assert iteration.iterations == [1]
        break
    await stream.aclose()
    while await one.rows():
        await asyncio.sleep(0.01)


async def test_a_deadline_ends_a_request_with_what_it_has(one: Running) -> None:
    result = await slow(one.engines, cap=FOREVER, deadline=time.monotonic() + 0.2)
    assert result.status == ["deadline"]
    assert result.iterations[0] > 1
    assert np.isfinite(result.logits_array()).all()


async def test_a_full_queue_raises_with_its_numbers(one: Running) -> None:
    first = slow(one.engines, cap=FOREVER, rows=250)
    while not await one.rows():
        await asyncio.sleep(0)
    with pytest.raises(QueueFull) as full:
        await slow(one.engines, cap=1, rows=100)
    assert full.value.max_waiting_rows == 256
    assert 250 - 16 <= full.value.waiting_rows <= 250
    assert full.value.retry_after > 0
    first.cancel()


async def test_an_unknown_version_is_not_served(one: Running) -> None:
    with pytest.raises(NotServed):
        await one.engines.predict(Request("digits", 9, pictures(1).tobytes(), [1.0], [1], [None]))


async def test_a_diverging_row_is_answered(one: Running) -> None:
    inputs = np.array([[0.0, 0.0], [1.0, 1.0]], dtype="<f4").tobytes()
    result = await one.engines.predict(Request("wild", 1, inputs, [1e-3] * 2, [50] * 2, [None] * 2))
    assert result.status == ["converged", "diverged"]


async def test_a_killed_engine_comes_back_and_every_request_ends(one: Running, store: Path) -> None:
    restarts = one.status.restarts
    inputs = pictures(64)
    outcomes: list[Result | BaseException] = []

    async def keep_sending(k: int) -> None:
        while one.status.restarts == restarts:
            outcomes.append(*await asyncio.gather(predict(one.engines, inputs[k][None]), return_exceptions=True))
            await asyncio.sleep(0.002)

    stuck = slow(one.engines, cap=FOREVER)
    senders = [asyncio.create_task(keep_sending(k)) for k in range(64)]
    while len(outcomes) < 100:
        await asyncio.sleep(0)
    one.kill(0)
    with pytest.raises(EngineUnavailable):
        await stuck
    assert not one.engines.states
    with pytest.raises(EngineUnavailable):
        await predict(one.engines, inputs[:1])
    assert await one.engines.refresh(5) == {}
    assert one.engines.catalogue.names == ["digits", "slow", "wild"], "what was served last is still known"
    await asyncio.gather(*senders)
    assert {type(outcome) for outcome in outcomes} == {Result, EngineUnavailable}

    await one.wait_for(0, restarts)
    results = await asyncio.gather(*(predict(one.engines, row[None]) for row in inputs))
    assert_right(store, inputs, results, [1e-4] * 64)


async def test_an_engine_that_hangs_is_killed_and_comes_back(store: Path, tmp_path: Path) -> None:
    async with running(store, tmp_path, hang_seconds=3.0) as hanging:
        hanging.kill(0, signal.SIGSTOP)
        await hanging.engines.refresh(0.1)  # returns although the engine does not answer
        with pytest.raises(EngineUnavailable):
            await predict(hanging.engines, pictures(1))
        await hanging.wait_for(0, 0)
        assert (await predict(hanging.engines, pictures(1))).status == ["converged"]


async def test_stopping_lets_requests_in_flight_end(store: Path, tmp_path: Path) -> None:
    async with running(store, tmp_path) as stopping:
        requests = [slow(stopping.engines, cap=2000) for _ in range(40)]
        while await stopping.rows() < 40:  # messages keep their order: all 40 have arrived
            await asyncio.sleep(0)
        stopping.processes[0].stop()
        await stopping.processes[0].wait(60)
        assert [result.iterations for result in await asyncio.gather(*requests)] == [[2000]] * 40
        with pytest.raises(EngineUnavailable):
            await predict(stopping.engines, pictures(1))


async def test_a_dead_engine_costs_its_own_requests_and_comes_back_without_what_was_unloaded(two: Running) -> None:
    await two.engines.unload("wild")
    assert two.engines.catalogue.names == ["digits", "slow"]
    requests = [slow(two.engines, cap=FOREVER) for _ in range(2)]
    while await two.rows(0) + await two.rows(1) < 2:
        await asyncio.sleep(0)
    assert await two.rows(0) == await two.rows(1) == 1, "the second request went to the engine that was idle"
    restarts = read_status(two.status_files[0]).restarts
    two.kill(0)
    with pytest.raises(EngineUnavailable):
        await requests[0]
    while 0 in two.engines.states:
        await asyncio.sleep(0)
    for row in pictures(20):
        assert (await predict(two.engines, row[None])).status == ["converged"]
    assert not requests[1].done()
    await two.wait_for(0, restarts)
    assert await two.rows(0) == 0
    assert await two.rows(1) == 1
    requests[1].cancel()
    assert [state.unloaded for state in two.engines.states.values()] == [["wild"]] * 2
    assert two.engines.catalogue.names == ["digits", "slow"]
    await two.engines.load("wild")
    assert two.engines.catalogue.names == ["digits", "slow", "wild"]


async def test_a_request_goes_to_the_engine_with_the_fewest_rows_in_flight(two: Running) -> None:
    large = slow(two.engines, cap=FOREVER, rows=12)
    small = [slow(two.engines, cap=FOREVER) for _ in range(10)]
    while await two.rows(0) + await two.rows(1) < 22:
        await asyncio.sleep(0)
    assert sorted([await two.rows(0), await two.rows(1)]) == [10, 12]
    for request in (large, *small):
        request.cancel()
    while await two.rows(0) + await two.rows(1):
        await asyncio.sleep(0.01)


async def test_a_session_stays_with_its_engine(two: Running) -> None:
    async def warm(session: str) -> int:
        inputs = pictures(1)
        request = Request("digits", 1, inputs.tobytes(), [1e-4], [100], [None], session=session)
        return (await two.engines.predict(request)).iterations[0]

    for session in ("one", "two", "three", "four"):
        cold = await warm(session)
        assert await warm(session) < cold
        assert await warm(session) < cold


async def test_an_engine_that_cannot_start_is_tried_again_and_can_be_stopped(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'app.engine' in sys.orig_argv:\n    os._exit(2)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    settings = Settings.model_validate(CONFIG | {"model_store": store, "max_rows_per_request": 256})
    async with Supervisor(settings) as supervisor, Engines(supervisor.run_folder.sockets) as engines:
        async with asyncio.timeout(60):
            while (status := read_status(supervisor.run_folder.status_files[0])).consecutive_exits < 2:
                await asyncio.sleep(0.02)
        assert status.last_error == "exited 2 times in a row (status 2) and is restarted in 0.5 s"
        assert not status.ready
        with pytest.raises(EngineUnavailable):
            await predict(engines, pictures(1))
        with pytest.raises(EngineUnavailable):
            _ = engines.catalogue
    assert not supervisor.run_folder.path.exists()
