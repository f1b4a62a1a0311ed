"""docs/architecture.md against the code: every room has a line, what the page names exists, and rooms import in one direction."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("app", "jfb", "training")
NAMED = sorted(set(re.findall(r"`((?:app|jfb|training)/[\w/]+\.py):([\w.]+)`", PAGE)))


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """The script that draws the picture."""
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_has_a_line(package: str, drawing: ModuleType) -> None:
    section = re.split(rf"^### {package}\b.*$", PAGE, flags=re.MULTILINE)[1].split("\n#")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == list(drawing.find_arrows(package))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}:{name}" for file, name in NAMED])
def test_what_the_page_names_exists(file: str, name: str) -> None:
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
    for part in name.split("."):
        found = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
        assert part in found, f"{file} has no {name}"
        body = found[part].body


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_in_one_direction(package: str, drawing: ModuleType) -> None:
    below = drawing.reachable(drawing.find_arrows(package))
    assert [room for room in below if room in below[room]] == []


def test_the_server_has_few_rooms(drawing: ModuleType) -> None:
    assert len(drawing.find_arrows("app")) <= 14
