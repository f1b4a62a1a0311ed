"""What the engine promises, with every backend: the same results alone and in company, and no work except what was requested."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import jfb
from app.engine.backends.backend import OnnxBackend
from app.engine.batch import RunningBatch
from app.engine.loading import make_batch
from app.engine.running_request import RunningRequest
from app.engine.scheduler import Scheduler, Started
from app.engine.warm_starts import WarmStarts
from app.engine_client.messages import Result, Stop
from app.settings import BackendName, EngineConfig, Precision
from jfb import LabelStop, ResidualNorm, Status, checkpoint, predict
from jfb.config import LearnedStartSpec
from jfb.export import export
from jfb.label_stop import Kind
from jfb.learned_start import LearnedStart
from jfb.solvers import Mixing
from tests.app.engine.geometric import tick_until_idle
from tests.app.engine.requests import running_request, sent_request
from tests.app.store import DIGITS, network_of

ROWS = 60
TOLERANCES = [tolerance for tolerance, _ in zip(cycle([1e-1, 1e-4, 1e-3]), range(ROWS), strict=False)]


pytestmark = pytest.mark.slow  # exports to ONNX


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version's folder with the graphs that ONNX Runtime needs, and with a learned start, where every row starts."""
    folder = tmp_path_factory.mktemp("store") / "digits" / "1"
    folder.mkdir(parents=True)
    network = network_of(DIGITS, 1)
    network.latent.weight.data[:, :, 1, 1] += 3 * torch.eye(8)  # type: ignore[index, union-attr]
    network.constrain()
    torch.manual_seed(0)
    mixing = Mixing(1.2 * torch.eye(8) + 0.05 * torch.randn(8, 8), torch.full((8,), 0.05), 0.85)
    start = LearnedStartSpec(injection_shape=(8, 4, 4), state_shape=(8, 4, 4), bottleneck=3)
    network.learned_start = LearnedStart(**dict(start))
    checkpoint.save(folder, DIGITS.model_copy(update={"learned_start": start}), network, mixing)
    export(folder, parts=True)
    return folder


def answers(scheduler: Scheduler, requests: list[RunningRequest]) -> list[RunningRequest]:
    for request in requests:
        scheduler.submit(request)
    return sorted(tick_until_idle(scheduler), key=lambda request: request.number)


@pytest.mark.parametrize("solver", ["picard", "anderson", "mixing"])
@pytest.mark.parametrize(
    ("backend", "precision"),
    [("torch", "float32"), ("folded", "float32"), ("onnx", "float32"), ("auto", "float32"), ("folded", "mixed")],
)
def test_a_row_is_answered_the_same_alone_and_in_company(
    version: Path, backend: BackendName, precision: Precision, solver: str
) -> None:
    found = jfb.load(version)
    inputs = np.random.default_rng(0).integers(0, 17, (ROWS, 1, 8, 8)).astype(np.float32)
    try:
        batch = make_batch(found, version, torch.device("cpu"), EngineConfig(slots=16, backend=backend, precision=precision))
    except ValueError as error:  # a processor on which bfloat16 is rounded by the size of the batch has no mixed precision
        assert precision == "mixed"
        pytest.skip(str(error))
    scheduler = Scheduler(batch, max_waiting_rows=ROWS)

    def request(id: int, row: int) -> RunningRequest:
        return running_request(id, inputs[row : row + 1], [TOLERANCES[row]], [100], [None], solver=solver)

    alone = [answers(scheduler, [request(row, row)])[0] for row in range(ROWS)]
    together = answers(scheduler, [request(ROWS + row, row) for row in range(ROWS)])
    assert scheduler.step_evaluations == scheduler.iterations == sum(request.iterations[0] for request in (*alone, *together))
    for one, among in zip(alone, together, strict=True):
        assert one.status == among.status == [Status.CONVERGED]
        assert one.logits.argmax() == among.logits.argmax()
        if one.iterations == among.iterations:
            assert one.logits == pytest.approx(among.logits, abs=1e-5)
    # A count may differ by one where rounding falls on the very threshold.
    counts = np.array([[request.iterations[0] for request in requests] for requests in (alone, together)])
    assert np.abs(counts[0] - counts[1]).max() <= 1
    assert np.count_nonzero(counts[0] != counts[1]) <= 1
    assert len(set(counts[0].tolist())) > 3, "the rows should not be equally hard"

    expected = predict(
        found.network,
        torch.from_numpy(inputs),
        tolerance=torch.tensor(TOLERANCES),
        max_iterations=100,
        solver=found.solvers[solver],
    )
    if precision == "float32":
        assert np.count_nonzero(counts[0] != expected.solution.iterations.numpy()) <= 1
        assert np.concatenate([request.logits for request in alone]) == pytest.approx(expected.logits.numpy(), abs=1e-4)
    assert [int(request.logits.argmax()) for request in alone] == expected.logits.argmax(1).tolist()


def faster_and_faster() -> Callable[[], float]:
    """A clock by which whatever is measured later is faster, which is the iteration in one call."""
    now, step = 0.0, 4e-4

    def clock() -> float:
        nonlocal now, step
        now, step = now + step, 0.999 * step
        return now

    return clock


@pytest.mark.parametrize("norm", list(ResidualNorm))
@pytest.mark.parametrize("solver", ["picard", "mixing"])
@pytest.mark.parametrize("stop", ["tolerance", "label"])
def test_one_call_into_onnx_runtime_per_iteration_answers_as_predict_does(
    version: Path, solver: str, norm: ResidualNorm, stop: Stop
) -> None:
    found = jfb.load(version)
    inputs = np.random.default_rng(1).integers(0, 17, (ROWS, 1, 8, 8)).astype(np.float32)
    label_stop = LabelStop(Kind.ESTIMATE, 0.5, safety=1.5)
    backend = OnnxBackend(version, found.config)
    batch = RunningBatch(backend, found.solvers, norm, (1, 8, 8), slots=16, label_stop=label_stop)
    batch.measure(faster_and_faster())
    assert batch.offers_label_stop(solver)
    scheduler = Scheduler(batch, max_waiting_rows=ROWS)
    rng = np.random.default_rng(0)
    caps = rng.integers(1, 60, ROWS).tolist()
    by_label = [stop == "label" and bool(rng.random() < 0.7) for _ in range(ROWS)]
    requests = [
        running_request(
            id,
            inputs[id : id + 1],
            [TOLERANCES[id]],
            [caps[id]],
            [None],
            solver=solver,
            stop="label" if by_label[id] else "tolerance",
        )
        for id in range(ROWS)
    ]
    together = answers(scheduler, requests)
    assert scheduler.step_evaluations == scheduler.iterations
    for own, offline in ((np.array(by_label), label_stop), (~np.array(by_label), None)):
        if not own.any():
            continue
        expected = predict(
            found.network,
            torch.from_numpy(inputs[own]),
            tolerance=torch.tensor(TOLERANCES)[own],
            max_iterations=torch.tensor(caps)[own],
            residual_norm=norm,
            solver=found.solvers[solver],
            label_stop=offline,
        )
        rows = [together[id] for id in np.flatnonzero(own)]
        counts = np.array([request.iterations[0] for request in rows])
        differences = np.abs(counts - expected.solution.iterations.numpy())
        assert differences.max() <= 1, "where rounding falls on the very threshold, a count may differ by one"
        assert np.count_nonzero(differences) <= 1
        same = differences == 0
        assert [request.status[0] for request, kept in zip(rows, same, strict=True) if kept] == [
            status for status, kept in zip(expected.solution.status, same, strict=True) if kept
        ]
        logits = np.concatenate([request.logits for request in rows])
        assert logits[same] == pytest.approx(expected.logits.numpy()[same], abs=1e-4)


@pytest.mark.parametrize("norm", list(ResidualNorm))
@pytest.mark.parametrize("solver", ["picard", "mixing"])
def test_a_row_that_is_alone_lives_in_one_call_and_goes_on_in_company_if_that_is_not_enough(
    version: Path, solver: str, norm: ResidualNorm
) -> None:
    found = jfb.load(version)
    inputs = np.random.default_rng(4).integers(0, 17, (8, 1, 8, 8)).astype(np.float32)
    batch = RunningBatch(OnnxBackend(version, found.config), found.solvers, norm, (1, 8, 8), slots=4)
    batch.measure(faster_and_faster())
    scheduler = Scheduler(batch, max_waiting_rows=8)
    _, looks = batch._one_row[solver]
    tolerance, caps = [1.0, 1.0] + [1e-4] * 6, [60, 1, 60, looks, looks + 1, 60, 60, 60]

    answered: dict[int, tuple[int, str, NDArray[np.floating]]] = {}

    def submit(row: int) -> Result | Started | None:
        """As an engine does with the only request that has arrived."""
        own = slice(row, row + 1)
        arrived = sent_request(row, inputs[own], tolerance[own], caps[own], [None], solver=solver)
        started = scheduler.live(arrived)
        if isinstance(started, Result):
            answered[row] = started.iterations[0], started.status[0], started.logits_array()
        else:
            scheduler.submit(RunningRequest(row, arrived, (1, 8, 8)), started)
        return started

    def finish() -> None:
        for ended in tick_until_idle(scheduler):
            answered[ended.number] = ended.iterations[0], ended.status[0], ended.logits

    for row in range(5):  # each alone
        is_answered = isinstance(submit(row), Result)
        assert is_answered == (scheduler.step_evaluations == scheduler.iterations) == (not scheduler.busy)
        finish()
    assert isinstance(submit(5), Started)
    scheduler.tick(0.0)
    assert scheduler.active_rows == 1
    assert submit(6) is None
    assert submit(7) is None
    finish()
    assert scheduler.step_evaluations == scheduler.iterations
    expected = predict(
        found.network,
        torch.from_numpy(inputs),
        tolerance=torch.tensor(tolerance),
        max_iterations=torch.tensor(caps),
        residual_norm=norm,
        solver=found.solvers[solver],
    )
    iterations, status, logits = zip(*(answered[row] for row in range(8)), strict=True)
    assert list(iterations) == expected.solution.iterations.tolist()
    assert list(status) == expected.solution.status
    assert np.concatenate(logits) == pytest.approx(expected.logits.numpy(), abs=1e-4)


def test_an_iteration_that_one_call_cannot_compute_is_computed_in_parts(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime begins to raise after a few iterations: nothing is lost or counted twice."""
    found = jfb.load(version)
    backend = OnnxBackend(version, found.config)
    batch = RunningBatch(backend, found.solvers, ResidualNorm.RELATIVE, (1, 8, 8), slots=16)
    batch.measure(faster_and_faster())
    scheduler = Scheduler(batch, max_waiting_rows=16)
    inputs = np.random.default_rng(2).integers(0, 17, (16, 1, 8, 8)).astype(np.float32)
    scheduler.submit(running_request(1, inputs, [1e-4] * 16, [100] * 16, [None] * 16, solver="mixing"))
    scheduler.tick(0.0)

    def out_of_memory(*_: object) -> None:
        raise RuntimeError("out of memory")

    (fused,) = [lane._fused for lane in batch.active_lanes]
    assert fused is not None
    monkeypatch.setattr(fused, "_turn", out_of_memory)
    fused._turns.clear()
    (request,) = tick_until_idle(scheduler)
    expected = predict(
        found.network, torch.from_numpy(inputs), tolerance=1e-4, max_iterations=100, solver=found.solvers["mixing"]
    )
    assert np.count_nonzero(request.iterations - expected.solution.iterations.numpy()) <= 1
    assert request.logits == pytest.approx(expected.logits.numpy(), abs=1e-4)


@pytest.mark.parametrize("backend", ["torch", "folded", "onnx"])
def test_a_row_whose_deadline_passes_first_is_answered_with_the_readout_of_its_start(version: Path, backend: BackendName) -> None:
    found = jfb.load(version)
    batch = make_batch(found, version, torch.device("cpu"), EngineConfig(slots=4, backend=backend))
    scheduler = Scheduler(batch, max_waiting_rows=ROWS)
    inputs = np.random.default_rng(3).integers(0, 17, (11, 1, 8, 8)).astype(np.float32)
    (late,) = answers(scheduler, [running_request(1, inputs, [1e-4] * 11, [100] * 11, [-1.0] * 11, session="a")])
    assert (late.iterations, late.status) == ([0] * 11, [Status.DEADLINE] * 11)
    network = found.network
    expected = network.readout(network.first_state(network.inject(torch.from_numpy(inputs))))
    assert late.logits == pytest.approx(expected.numpy(), abs=1e-4)
    assert scheduler.step_evaluations == 0


def test_the_rows_of_a_session_start_where_it_ended_and_not_at_the_learned_start(version: Path) -> None:
    found = jfb.load(version)
    batch = make_batch(found, version, torch.device("cpu"), EngineConfig(slots=4, backend="torch"))
    scheduler = Scheduler(batch, max_waiting_rows=ROWS, warm_starts=WarmStarts(10**6, 60))
    inputs = np.random.default_rng(3).integers(0, 17, (1, 1, 8, 8)).astype(np.float32)
    cold, warm = (
        answers(scheduler, [running_request(number, inputs, [1e-4], [100], [None], session="a")])[0] for number in (1, 2)
    )
    assert warm.iterations[0] == 1 < cold.iterations[0]
