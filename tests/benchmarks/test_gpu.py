"""benchmarks/gpu.sh and its parts, in little and on a CPU: what they print and write, not how fast anything is."""

import csv
import itertools
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import structlog
import torch

from app.engine.backends import Backend, BFloat16Backend, TF32Backend
from benchmarks import deterministic, gpu_batching, gpu_check, gpu_engine, gpu_report, gpu_serving, gpu_steps, gpu_training
from benchmarks.serving.load import Outcome
from benchmarks.untrained import publish
from jfb import ResidualNorm

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
KILL_SECONDS, REPORT_SECONDS, START_SECONDS = 10, 5, 75


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Undo what the parts set for their process."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags
    torch.set_grad_enabled(True)
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = {"channels": [4], "pool": [4], "contraction": 0.8}
    return publish(tmp_path_factory.mktemp("store"), "tiny", "implicit_resnet", (3, 8, 8), arguments, max_iterations=1000)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def test_float32_is_compared_with_float64_and_a_difference_is_found() -> None:
    findings = [*gpu_check.check_network("implicit_mlp", CPU, 10)]
    assert len(findings) >= 10
    assert all(finding.good for finding in findings)
    expected = torch.ones(4, dtype=torch.float64)
    assert not gpu_check.Finding("", gpu_check.error(torch.tensor([1.0, 1.0, 1.0, 1.1]), expected), gpu_check.ROUNDING).good
    assert gpu_check.error(torch.tensor([1.0, 1.0, 1.0, torch.nan]), expected) == float("inf")


def test_the_engine_keeps_its_promises(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        gpu_engine.main("cpu", 8, "implicit_mlp", "relative")
    assert re.search(r"^(\d+) of \1 within limits$", capsys.readouterr().out, re.MULTILINE)


def test_rows_that_start_in_each_low_precision_are_compared_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def low_precision(found: gpu_engine.Checkpoint, device: torch.device, *, captured: bool) -> dict[str, Backend]:
        return {"bfloat16": BFloat16Backend(found.network.folded(), device), "tf32": TF32Backend(found.network.folded(), device)}

    monkeypatch.setattr(gpu_engine, "low_precision", low_precision)
    findings = [*gpu_engine.check("implicit_mlp", ResidualNorm.RELATIVE, CPU, 32, tmp_path)]
    compared = [finding for finding in findings if re.match("implicit_mlp, (bfloat16|tf32), ", finding.name)]
    assert len(compared) == 2 * 2 * 2, "of two precisions and two solvers, statuses and logits"
    assert all(finding.good for finding in findings)


def test_a_broken_promise_is_an_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_engine, "check", lambda name, *_: [gpu_check.Finding(name, 0.5, 0.1)])
    with pytest.raises(SystemExit, match="1"):
        gpu_engine.main("cpu", 8, "implicit_mlp", "relative")
    assert "wrong: implicit_mlp: 5.0e-01, allowed 1e-01\n0 of 1 within limits\n" in capsys.readouterr().out


def test_what_has_been_checked_is_reported_if_a_check_raises_and_if_time_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    def checks(*found: float | BaseException) -> Iterator[gpu_check.Finding]:
        for one in found:
            if isinstance(one, BaseException):
                raise one
            yield gpu_check.Finding("step", one, 0.1)

    named = {"a": checks(0.0, RuntimeError("no kernel"), 0.0), "b": checks(0.0, 0.5)}
    assert gpu_check.run_checks(named, show_all=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["wrong: a: RuntimeError('no kernel')", "wrong: step: 5.0e-01, allowed 1e-01", "2 of 3 within limits"]
    named = {"a": checks(0.0), "b": checks(0.0, KeyboardInterrupt()), "c": checks(0.0)}
    assert gpu_check.run_checks(named, show_all=False) == 1
    assert capsys.readouterr().out == "not checked: b; c\n2 of 2 within limits\n"
    assert gpu_check.run_checks({"a": checks(0.0)}, show_all=True) == 0
    assert capsys.readouterr().out == "good: step: 0.0e+00, allowed 1e-01\n1 of 1 within limits\n"


def test_a_capture_that_fails_is_a_broken_promise() -> None:
    graphs = gpu_engine.CudaGraphs.__new__(gpu_engine.CudaGraphs)
    for graphs.failure, good in ((None, True), ("RuntimeError: operation not permitted", False)):
        assert gpu_engine.check_captures("implicit_mlp", graphs).good is good
    assert gpu_engine.check_captures("implicit_mlp", gpu_engine.captures(CPU)).good


def test_an_iteration_is_timed_in_every_precision(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0"):
        gpu_steps.main(model, "1,2", "float32,bfloat16", "eager,compiled_graph", "cpu", 0.0, tmp_path / "steps.csv")
    cells = read(tmp_path / "steps.csv")
    assert len(cells) == 8
    assert all(float(cell["microseconds"]) > 0 for cell in cells if cell["mode"] == "eager")
    assert {cell["note"] for cell in cells if cell["mode"] == "compiled_graph"} == {"graphs need CUDA"}


def test_batching_is_measured_by_slots_and_for_one_client(model: Path, tmp_path: Path) -> None:
    gpu_batching.main(model, "2,4", 3, 1, 0.0, "cpu", "torch", tmp_path)
    by_slots = read(tmp_path / "batching.csv")
    assert [row["slots"] for row in by_slots] == ["2", "4"]
    assert all(float(value) > 0 for row in by_slots for name, value in row.items() if name != "low precision")
    assert {row["low precision"] for row in by_slots} <= {"", "BFloat16Backend"}
    (one,) = read(tmp_path / "one_client.csv")
    assert float(one["of replay"]) == pytest.approx(float(one["ms in the engine"]) / float(one["ms of bare replay"]))


class Inline:
    """In place of a process: computes at once."""

    def __init__(self, *_: object) -> None: ...

    def submit(self, compute: Callable[..., object], *arguments: object) -> "Future[object]":
        future: Future[object] = Future()
        future.set_result(compute(*arguments))
        return future


@pytest.mark.parametrize(("share", "status"), [(None, "0"), (0.25, "1")])
def test_the_price_of_the_same_bits_is_measured_by_clients(
    share: float | None,
    status: str,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(deterministic, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(deterministic, "set_up_torch", lambda config: None)  # which is for a whole process
    if share is not None:
        monkeypatch.setattr(deterministic, "different_bits", lambda *_: share)
    with pytest.raises(SystemExit, match=status):
        deterministic.main(model, None, "1,3", "train", 10, 2, "cpu", "float32", tmp_path / "deterministic.csv")
    rows = read(tmp_path / "deterministic.csv")
    assert [row["clients"] for row in rows] == ["1", "3"]
    assert {row["slots, deterministic"] for row in rows} == {"16"}
    assert all(float(row[name]) > 0 for row in rows for name in ("default", "deterministic", "ratio"))
    printed = capsys.readouterr().out
    assert ("wrong: share of rows with other bits alone: 2.5e-01, allowed 0e+00\n0 of 1 within limits" in printed) == (
        share is not None
    )


def test_a_bare_loop_computes_what_the_network_does(model: Path) -> None:
    checkpoint = gpu_batching.jfb.load(model)
    bare = gpu_batching.Bare(checkpoint, 3, CPU)
    inputs = torch.from_numpy(gpu_batching.random_images(checkpoint, 3))
    with torch.inference_mode():
        found = bare.solve_in_lockstep(inputs, 1e-6)
    expected = gpu_batching.jfb.predict(checkpoint.network, inputs, tolerance=1e-6, max_iterations=1000)
    assert torch.allclose(found, expected.logits, atol=1e-4)
    count = int(expected.solution.iterations.amax())
    with torch.inference_mode():
        assert torch.allclose(bare.replay(inputs, count), expected.logits, atol=1e-4)


def test_training_steps_are_compared_with_the_authors(tmp_path: Path) -> None:
    gpu_training.main("cifar10_small", None, None, 1, 2, False, "cpu", tmp_path / "training.csv")
    rows = {row["method"]: row for row in read(tmp_path / "training.csv")}
    assert {"jfb", "jfb, search in bfloat16", "jacobian", "authors' program"} <= rows.keys()
    jfb = rows["jfb"]
    assert float(jfb["s per epoch"]) == pytest.approx(47_500 // 2 * float(jfb["ms per step"]) / 1e3)
    assert float(rows["authors' program"]["of authors' program"]) == 1.0


def test_a_step_that_cannot_be_compiled_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_step(network: gpu_training.ImplicitNetwork) -> None:
        raise RuntimeError("no compiler\nstack")

    monkeypatch.setattr(gpu_training, "make_methods", lambda: {"jfb": gpu_training.ours(gpu_training.JFB()), "unrolled": None})
    monkeypatch.setattr(gpu_training, "authors", gpu_training.ours(gpu_training.JFB()))
    monkeypatch.setattr(gpu_training, "describe", lambda name, steps, methods, size: [{"network": name, "method": methods}])
    monkeypatch.setattr(gpu_training, "compile_step", compile_step)
    gpu_training.main("cifar10_small", None, None, 1, 2, True, "cpu", tmp_path / "training.csv")
    assert [row["method"] for row in read(tmp_path / "training.csv")] == ["['jfb']"]
    assert "cifar10_small, untrained: not compiled: no compiler\n" in capsys.readouterr().out


def test_the_bottleneck_is_named_first() -> None:
    outcome = Outcome(2.0, {gpu_serving.LOOSE: [0.001] * 10, gpu_serving.STRICT: [0.003] * 10}, [3, 5] * 10)
    row = gpu_serving.describe("jfb", 4, outcome, {"engine": 0.4, "HTTP worker": 0.97, "client": 0.001})
    assert row["busiest first"] == "HTTP worker 97%, engine 40%"
    assert (row["requests/s"], row["iterations"], row["strict p50"]) == (10.0, 4.0, pytest.approx(3.0))


def test_what_a_server_has_logged_first_is_printed(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("")
    assert gpu_serving.first_lines(log) == "nothing logged"
    log.write_text("CUDA graphs not used\n" + "x" * gpu_serving.MAX_LOG_CHARACTERS)
    assert gpu_serving.first_lines(log).startswith("CUDA graphs not used\nxxx")
    assert len(gpu_serving.first_lines(log)) == gpu_serving.MAX_LOG_CHARACTERS


def test_the_page_holds_every_table_and_says_which_aims_are_missed(tmp_path: Path) -> None:
    (tmp_path / "machine.txt").write_text("A100, torch 2.11, Python 3.12\n")
    (tmp_path / "check.txt").write_text("noise\n72 of 73 within limits\n")
    (tmp_path / "engine.txt").write_text("wrong: a: 1, allowed 0\n1 of 2 within limits\n")
    (tmp_path / "batching.csv").write_text("slots,requests/s,of lockstep,of bound\n64,1234.56,1.9,0.8\n")
    (tmp_path / "one_client.csv").write_text(",of replay\none client,1.29\n")
    (tmp_path / "training.csv").write_text("network,method,of authors' program\nsmall,jfb,0.6\nsmall,authors' program,1.0\n")
    (tmp_path / "steps.csv").write_text(
        "mode,precision,batch,error,microseconds,tflops,of_peak,note\neager,float32,1,0,12.34,1,0.5,\ngraph,float32,1,0,nan,nan,nan,no\n"
    )
    version = tmp_path / "store" / "digits" / "1"
    version.mkdir(parents=True)
    (version / "metrics.json").write_text(json.dumps({"accuracy": 0.937, "iterations": 7.0, "seconds": 30.0}))
    (version / "history.csv").write_text("epoch\n1\n2\n")
    page = "\n\n".join(gpu_report.report(tmp_path))
    for line in (
        "- check: 72 of 73 within limits",
        "- engine: wrong: a: 1, allowed 0",
        "| batching | 64 | of bound: at least 0.85 | 0.8 | **missed** |",
        "| batching | 64 | of lockstep: at least 1.8 | 1.9 | met |",
        "| one_client | one client | of replay: at most 1.3 | 1.29 | met |",
        "| training | small, jfb | of authors' program: at most 0.5 | 0.6 | **missed** |",
        "| 1 | 12.3 (50.0%) | no |",
        "| 64 | 1235 | 1.9 | 0.8 |",
        "| digits | 2 | 93.70% | 7 | 15 | 30 |",
    ):
        assert line in page.splitlines(), line
    assert "A100, torch 2.11, Python 3.12" in page


def test_a_run_that_left_nothing_has_a_page_too(tmp_path: Path) -> None:
    assert "".join(gpu_report.report(tmp_path)).startswith("# Measurements on a GPU")


def test_the_wheels_have_the_versions_that_the_project_was_tested_with(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu.sh"
    finished = subprocess.run(
        ["bash", script, "--wheels", tmp_path], env={**os.environ, "PYTHON": "echo"}, capture_output=True, text=True, check=True
    )
    wanted = {word.partition("==")[0] for word in finished.stdout.split() if "==" in word}
    named = re.findall(r"(?:lacking\+?|rivals)='([^']*)'", script.read_text())
    assert wanted == {name for names in named for name in names.strip("|").split("|")}


def test_two_calls_end_within_ten_minutes_each_and_fifteen_together_with_the_start_of_a_machine() -> None:
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    (total,) = map(int, re.findall(r"\$\{TOTAL:-(\d+)\}", script))
    parts = {name: int(seconds) for name, seconds in re.findall(r"^part (\w+) (?:\"\$\{\w+:-)?(\d+)", script, re.MULTILINE)}
    (listed,) = re.findall(r"\$\{PARTS:-([a-z ]+)\}", script)
    calls = [call.split() for call in re.findall(r'PARTS="([a-z ]+)"', script)]
    assert [*itertools.chain(*calls)] == list(parts) == listed.split()
    assert total + KILL_SECONDS + REPORT_SECONDS <= 600
    assert all(sum(parts[name] for name in call) <= total for call in calls)
    assert sum(parts.values()) + len(calls) * (KILL_SECONDS + REPORT_SECONDS) + START_SECONDS <= 900


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_all_parts_run_one_after_the_other(tmp_path: Path) -> None:
    finished = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", "--short"],
        env={**os.environ, "OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert finished.returncode == 0, finished.stdout[-3000:]
    page = (tmp_path / "gpu.md").read_text()
    for title in ("Correctness", "Aims", "Time of an iteration (steps)", "Served requests", "Training steps", "Training"):
        assert f"\n## {title}\n" in page
    with tarfile.open(tmp_path / "all.tar.gz") as archive:
        assert {"./gpu.md", "./serving.csv", "./store/digits/1/model.safetensors"} <= {*archive.getnames()}
