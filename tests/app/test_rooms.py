"""The rooms of app/ and the arrows between them, read from the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parents[2] / "app"
FLOORS = [
    {"schemas", "settings"},
    {"supervisor"},
    {"engine_client"},
    {"observability"},
    {"http", "engine"},
    {"inference"},
    {"routes", "grpc"},
    {"main"},
    {"cli", "ray"},
    {"__main__"},
]
"""From the bottom: a room may import rooms of the floors below its own, and no other room."""
NO_TORCH = ("app.cli.http_worker", "app.main", "app.cli.serve", "app.cli.predict", "app.engine_client.client", "app.cli.alias")


def room(module: str) -> str:
    """The room of a module ``app.…``."""
    return module.split(".")[1]


def imports(file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names if node.module == "app")}
    return found


def module(file: Path) -> str:
    """The name of a file's module."""
    return ".".join(file.relative_to(APP.parent).with_suffix("").parts)


FILES = sorted(APP.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=module)
def test_rooms_import_only_rooms_below_them(file: Path) -> None:
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    if file == APP / "__init__.py":
        return
    own = room(module(file))
    for other in {room(name) for name in imports(file) if name.startswith("app.")} - {own}:
        assert floor[other] < floor[own], f"{module(file)} imports {other}, which is not below {own}"


@pytest.mark.parametrize("file", [file for file in FILES if APP / "engine" not in file.parents], ids=module)
def test_no_file_outside_the_engine_imports_torch(file: Path) -> None:
    roots = {name.split(".")[0] for name in imports(file)}
    assert not roots & {"torch", "onnxruntime", "onnx"}
    assert own_engine_imports(file) == set()


def own_engine_imports(file: Path) -> set[str]:
    """What a file imports from app.engine."""
    return {name for name in imports(file) if name == "app.engine" or name.startswith("app.engine.")}


def test_the_http_side_runs_without_torch() -> None:
    program = f"import sys, {', '.join(NO_TORCH)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
