"""The choice of backends: wrong results are rejected, the fastest is used, and low precision only where it is faster."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

import jfb
from app.engine import loading
from app.engine.backends import Backend, BFloat16Backend, TF32Backend, TorchBackend, candidates, choose, low_precision
from app.engine.graphs import CudaGraphs, Run
from app.settings import EngineConfig
from jfb import checkpoint
from jfb.config import ModelConfig
from jfb.export import export
from tests.app.engine.test_lanes import ByRow
from tests.app.store import DIGITS, network_of
from tests.jfb.networks import small_resnet

PROBE = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Wrong(TorchBackend):
    """Answers of another network, by a little more than is allowed."""

    def readout(self, state: Tensor) -> Tensor:
        return super().readout(state) + 3e-3


class Broken(TorchBackend):
    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this")


class Clock:
    """Time that passes when a backend computes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(TorchBackend):
    """Takes a time of its own for a row and one for each call."""

    def __init__(self, clock: Clock, a_call: float, a_row: float) -> None:
        super().__init__(small_resnet().float())
        self.clock, self.a_call, self.a_row = clock, a_call, a_row

    def step(self, state: Tensor, injection: Tensor) -> Tensor:
        self.clock.now += self.a_call + self.a_row * state.shape[0]
        # Each row by itself, as rounding may depend on the size of a batch.
        return torch.cat([super(Timed, self).step(*row) for row in zip(state.split(1), injection.split(1), strict=True)])


def a_backend() -> TorchBackend:
    return TorchBackend(small_resnet().float())


def test_a_backend_with_other_results_or_an_error_is_rejected_with_the_reason() -> None:
    network = small_resnet().float()
    choice = choose({"torch": TorchBackend(network), "wrong": Wrong(network), "broken": Broken(network)}, PROBE)
    assert choice.refused.keys() == {"wrong", "broken"}
    assert "readout: 3.0e-03 from float32 eager, where 1.5e-04 is allowed" in choice.refused["wrong"]
    assert "step: RuntimeError: no kernel for this" in choice.refused["broken"]
    assert {name for names in choice.table.values() for name in names} == {"torch"}


def test_the_fastest_is_taken_at_each_batch_size_and_the_slots_are_the_smallest_batch_that_is_nearly_best() -> None:
    clock = Clock()
    backends = {"torch": Timed(clock, 100.0, 1.0), "small": Timed(clock, 1.0, 30.0)}
    choice = choose(backends, PROBE, clock=clock)
    assert choice.table["step"] == ["small", "small", "torch", "torch"] or choice.table["step"] == ["small"] * 3 + ["torch"]
    assert choice.step_seconds == [31.0, 61.0, min(104.0, 121.0), 108.0]
    assert choice.best_slots == 8
    state = torch.zeros(3, 4, 3, 3)
    before = clock.now
    choice.backend.step(state, state)
    assert clock.now - before == 103.0, "three rows are computed by what is fastest for four"
    flat = choose({"torch": Timed(clock, 0.0, 1.0)}, PROBE, clock=clock)
    assert flat.best_slots == 1, "a larger batch gains nothing here"
    quick = choose({"torch": Timed(clock, 0.0, 4e-5)}, PROBE, clock=clock)
    assert quick.best_slots == 8, "no step is faster in a larger batch, but what else a tick costs is shared by more rows"


def test_a_configured_backend_is_used_even_if_it_is_slower_and_rejected_with_an_error_if_it_is_wrong() -> None:
    clock = Clock()
    backends = {"torch": Timed(clock, 1.0, 1.0), "slow": Timed(clock, 9.0, 9.0)}
    assert set(choose(backends, PROBE, only="slow", clock=clock).table["step"]) == {"slow"}
    network = small_resnet().float()
    with pytest.raises(ValueError, match=r"backend: wrong cannot compute this model: readout: 3\.0e-03"):
        choose({"torch": TorchBackend(network), "wrong": Wrong(network)}, PROBE, only="wrong")


def test_low_precision_is_used_only_where_it_pays_is_near_and_is_not_forbidden() -> None:
    class Low(Timed):
        error = 0.0

        def step(self, state: Tensor, injection: Tensor) -> Tensor:
            return super().step(state, injection) + self.error

    clock = Clock()
    full, fast, slow, far = (Timed(clock, 0, 1.0), Low(clock, 0, 0.4), Low(clock, 0, 0.9), Low(clock, 0, 0.4))
    far.error = 10.0  # type: ignore[attr-defined]
    found = {
        name: choose({"torch": full}, PROBE, low_precision={"bfloat16": low}, clock=clock)
        for name, low in (("fast", fast), ("slow", slow), ("far", far))
    }
    assert found["fast"].low_precision is fast
    assert found["slow"].low_precision is found["far"].low_precision is None
    assert "0.90 of the time" in found["slow"].refused["bfloat16"]
    assert (
        choose({"torch": full}, PROBE, low_precision={"bfloat16": fast}, precision="float32", clock=clock).low_precision is None
    )
    assert choose({"torch": full}, PROBE, low_precision={"bfloat16": slow}, precision="mixed", clock=clock).low_precision is slow
    with pytest.raises(ValueError, match=r"precision: must be float32 or auto \(got mixed\)"):
        choose({"torch": full}, PROBE, low_precision={"bfloat16": far}, precision="mixed", clock=clock)


def test_low_precision_that_rounds_by_the_size_of_the_batch_is_rejected() -> None:
    class Company(Timed):
        def step(self, state: Tensor, injection: Tensor) -> Tensor:
            return super().step(state, injection) + 1e-6 * (state.shape[0] == 2)

    clock = Clock()
    choice = choose({"torch": Timed(clock, 0, 1.0)}, PROBE, low_precision={"bfloat16": Company(clock, 0, 0.1)}, clock=clock)
    assert choice.low_precision is None
    assert choice.refused["bfloat16"] == "2 rows are rounded differently than 8"


@pytest.mark.parametrize(("bfloat16", "tf32", "taken"), [(0.2, 0.3, "tf32"), (0.1, 0.45, "bfloat16"), (0.2, 0.6, "bfloat16")])
def test_the_low_precision_is_taken_that_is_fastest_until_a_usual_residual(bfloat16: float, tf32: float, taken: str) -> None:
    """TF32 has two bits more, so rows stay in it for more iterations."""
    clock = Clock()
    lows = {"bfloat16": Timed(clock, 0, bfloat16), "tf32": Timed(clock, 0, tf32)}
    lows["tf32"].roundoff = TF32Backend.roundoff
    assert choose({"torch": Timed(clock, 0, 1.0)}, PROBE, low_precision=lows, clock=clock).low_precision is lows[taken]


@pytest.mark.parametrize("fails", [False, True])
def test_tf32_is_allowed_for_a_step_alone(fails: bool) -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    class Noting(ByRow):
        found: tuple[bool, bool]

        def step(self, state: Tensor, injection: Tensor) -> Tensor:
            Noting.found = flags()
            if fails:
                raise RuntimeError("no kernel for this")
            return super().step(state, injection)

    before = flags()
    backend = TF32Backend(Noting(small_resnet().float()), torch.device("cpu"))
    with pytest.raises(RuntimeError) if fails else nullcontext():
        backend.step(*torch.randn(2, 5, 4, 3, 3))
    assert Noting.found == (True, True)
    assert flags() == before
    assert not TF32Backend.is_supported(torch.device("cpu"))


def test_tf32_is_for_steps_that_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a version loads, the engine iterates the others: a step of theirs that allows TF32 would round its reference, too."""
    monkeypatch.setattr(TF32Backend, "is_supported", lambda device: True)
    found = jfb.Checkpoint(DIGITS, network_of(DIGITS, 1).eval())
    for captured, names in ((True, ["bfloat16", "tf32"]), (False, ["bfloat16"])):
        assert list(low_precision(found, torch.device("cpu"), captured=captured)) == names


@pytest.mark.parametrize("failure", [None, "RuntimeError: operation not permitted when stream is capturing"])
def test_rows_do_not_start_in_tf32_if_a_capture_has_failed(failure: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Captures(CudaGraphs):
        def __init__(self) -> None:
            self.failure = failure

        def __call__(self, run: Run) -> Run:
            return run

    def low(found: jfb.Checkpoint, device: torch.device, *, captured: bool) -> dict[str, Backend]:
        assert captured
        return {"tf32": TF32Backend(found.network, device)}

    monkeypatch.setattr(loading, "low_precision", low)
    found = jfb.Checkpoint(DIGITS, ByRow(network_of(DIGITS, 1)).eval().requires_grad_(False))
    config = EngineConfig(backend="torch", precision="mixed", slots=2)
    batch = loading.make_batch(found, Path(), torch.device("cpu"), config, Captures())
    assert [lane.full_precision is not None for lane in batch.lanes].count(True) == (0 if failure else 2)
    inputs = 16 * torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    request = loading.iterated(batch, inputs, "picard", 30)
    expected = jfb.predict(found.network, inputs, tolerance=1e-30, max_iterations=30)
    assert request.iterations == [30]
    assert request.logits == pytest.approx(expected.logits.numpy(), abs=1e-4)


@torch.no_grad()
def test_a_bfloat16_step_is_that_of_the_network_to_rounding() -> None:
    network = small_resnet().float()
    state, injection = torch.randn(2, 5, 4, 3, 3)
    low = BFloat16Backend(network.folded(), torch.device("cpu")).step(state, injection)
    full = network.step(state, injection)
    assert low.dtype == torch.float32
    assert 1e-4 < float((low - full).abs().max()) < 0.1


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version")
    checkpoint.save(folder, DIGITS, network_of(DIGITS, 1))
    return folder


@pytest.mark.slow
def test_onnx_is_a_candidate_once_the_parts_are_in_the_folder(version: Path) -> None:

    cpu = torch.device("cpu")
    found = jfb.load(version)
    assert list(candidates(found, version, cpu, "auto")) == ["torch", "folded"]
    with pytest.raises(Exception, match=r"inject\.onnx"):
        candidates(found, version, cpu, "onnx")
    export(version, parts=True)
    backends = candidates(found, version, cpu, "auto")
    assert list(backends) == ["torch", "folded", "onnx"]
    probe = 16 * torch.rand(4, 1, 8, 8)
    assert choose(backends, probe, only="onnx").refused == {}
    assert list(low_precision(found, cpu, captured=True)) == ["bfloat16"]


@pytest.mark.slow
def test_graphs_of_other_weights_are_rejected(version: Path) -> None:
    """Parts that were exported before the weights were replaced."""
    other = jfb.Checkpoint(ModelConfig.model_validate(DIGITS.model_dump()), network_of(DIGITS, 2).eval())
    backends = candidates(other, version, torch.device("cpu"), "auto")
    assert "onnx" in choose(backends, 16 * torch.rand(4, 1, 8, 8)).refused
