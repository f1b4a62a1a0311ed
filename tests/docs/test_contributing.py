"""CONTRIBUTING.md names files and commands that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_path_in_it_exists() -> None:
    paths = {path for path in re.findall(r"`([\w./-]+)`", TEXT) if "/" in path.strip("/") or path.endswith("/")}
    paths |= set(re.findall(r"pytest ([\w./-]+)", TEXT))
    here = {path for path in paths if "NAME" not in path and not path.startswith("/")}
    assert len(here) > 20
    assert {path for path in here if not (ROOT / path).exists()} == set()


def test_every_command_in_it_is_a_target_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = set(re.findall(r"`make ([a-z-]+)`", TEXT))
    assert commands >= {"run", "check", "test", "test-long"}
    assert commands <= targets
