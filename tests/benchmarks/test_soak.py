"""A short soak: nothing may go wrong."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_nothing_goes_wrong_in_twenty_seconds_of_everything_at_once() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds=20", "--seed=7"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "nothing wrong" in ended.stdout
