"""A short soak test: every request gets exactly one correct response."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("seconds", "http_workers"), [pytest.param(60, 1, marks=pytest.mark.long), (5, 2)])
def test_a_soak_with_engine_kills_and_model_changes_reports_nothing_wrong(seconds: int, http_workers: int) -> None:
    flags = [f"--seconds={seconds}", "--seed=7", f"--http-workers={http_workers}"]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.soak", *flags]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "nothing wrong" in ended.stdout
