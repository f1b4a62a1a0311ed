"""What ``make`` installs, with programs in place of pip and uv that write down what they are called with."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
# In place of `python -m venv .venv`.
mkdir -p .venv/bin
cp program .venv/bin/pip
cp program .venv/bin/uv
"""
PROGRAM = """#!/bin/sh
echo "$(basename "$0")" "$@" >> calls
case "$(basename "$0") $*" in {fails}) exit 1;; esac
"""
NOT_OF_THIS_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
"""Variables of the ``make`` that runs the tests."""
UNREACHABLE = {"none": "", "uv": "pip*\\ uv", "the build's index": "uv*"}


pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in NOT_OF_THIS_MAKE}
    command = ["make", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=20)
    return done.stdout


@pytest.mark.parametrize("unreachable", UNREACHABLE)
def test_uv_installs_the_build_of_torch_and_pip_the_rest_and_its_default_build_where_uv_cannot(
    tmp_path: Path, unreachable: str
) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "program").write_text(PROGRAM.format(fails=UNREACHABLE[unreachable] or "nothing"))
    for name in ("python", "program"):
        (tmp_path / name).chmod(0o755)
    said = make(tmp_path, "--silent", ".venv/installed", "PYTHON=./python", "TORCH_BACKEND=cpu")
    calls = (tmp_path / "calls").read_text().splitlines()
    uv = "uv pip install --python .venv/bin/python --constraint constraints.txt --torch-backend cpu torch==2.13.0"
    rest = calls.pop()
    assert rest.startswith("pip install ")
    assert rest.endswith(" torch==2.13.0 --editable .[serve,train]")
    first = "pip install --quiet --retries 0 --timeout 5 uv"  # gives up after five seconds
    assert calls == ([first] if unreachable == "uv" else [first, uv])
    assert ("pip installs its default" in said) == (unreachable != "none")
    assert not any(word in call for call in [*calls, rest] for word in ("index", "http", "find-links"))


def test_without_a_build_pip_decides(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    assert make(tmp_path, "--dry-run", ".venv/bin/python", "PYTHON=python3", "TORCH_BACKEND=") == "python3 -m venv .venv\n"
