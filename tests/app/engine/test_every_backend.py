"""What the engine promises holds whatever computes: the same alone and in company, and no work but what was asked for."""

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from app.engine.request import Job

import jfb
from app.engine.backends import BackendName, Precision
from app.engine.loading import make_batch
from app.engine.scheduler import Engine
from jfb import Status, checkpoint, predict
from jfb.onnx.export import export
from jfb.solvers import SOLVERS
from tests.app.engine.geometric import tick_until_idle
from tests.app.store import DIGITS, network_of

ROWS = 60
TOLERANCES = [tolerance for tolerance, _ in zip(cycle([1e-1, 1e-4, 1e-3]), range(ROWS), strict=False)]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version's folder with the graphs that ONNX Runtime needs."""
    folder = tmp_path_factory.mktemp("store") / "digits" / "1"
    folder.mkdir(parents=True)
    network = network_of(DIGITS, 1)
    network.latent.weight.data[:, :, 1, 1] += 3 * torch.eye(8)  # type: ignore[index, union-attr]
    network.constrain()
    checkpoint.save(folder, DIGITS, network)
    export(folder, parts=True)
    return folder


def answers(engine: Engine, jobs: list[Job]) -> list[Job]:
    for job in jobs:
        engine.submit(job)
    return sorted(tick_until_idle(engine), key=lambda job: job.id)


@pytest.mark.parametrize("solver", ["picard", "anderson"])
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
        batch = make_batch(found, version, torch.device("cpu"), slots=16, backend=backend, precision=precision)
    except ValueError as error:  # a processor on which bfloat16 is rounded by the size of the batch has no mixed precision
        assert precision == "mixed"
        pytest.skip(str(error))
    engine = Engine([batch], max_waiting_rows=ROWS)

    def job(id: int, row: int) -> Job:
        return Job(id, inputs[row : row + 1], [TOLERANCES[row]], [100], [None], solver=solver)

    alone = [answers(engine, [job(row, row)])[0] for row in range(ROWS)]
    together = answers(engine, [job(ROWS + row, row) for row in range(ROWS)])
    assert engine.step_evaluations == engine.iterations == sum(job.iterations[0] for job in (*alone, *together))
    for one, among in zip(alone, together, strict=True):
        assert one.status == among.status == [Status.CONVERGED]
        assert one.logits.argmax() == among.logits.argmax()
        if one.iterations == among.iterations:
            assert one.logits == pytest.approx(among.logits, abs=1e-5)
    # A count may differ by one where rounding falls on the very threshold.
    counts = np.array([[job.iterations[0] for job in jobs] for jobs in (alone, together)])
    assert np.abs(counts[0] - counts[1]).max() <= 1
    assert np.count_nonzero(counts[0] != counts[1]) <= 1
    assert len(set(counts[0].tolist())) > 3, "the rows should not be equally hard"

    expected = predict(
        found.network,
        torch.from_numpy(inputs),
        tolerance=torch.tensor(TOLERANCES),
        max_iterations=100,
        solver=SOLVERS[solver](),
    )
    if precision == "float32":
        assert np.count_nonzero(counts[0] != expected.solution.iterations.numpy()) <= 1
        assert np.concatenate([job.logits for job in alone]) == pytest.approx(expected.logits.numpy(), abs=1e-4)
    assert [int(job.logits.argmax()) for job in alone] == expected.logits.argmax(1).tolist()
