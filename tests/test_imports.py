"""The arrows between modules: which rooms may import which, no circles, and what must not import torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "jfb": ("training", "app", "commandline"),
    "training": ("app", "commandline"),
    "app": ("training", "commandline"),
    "commandline": ("jfb",),
}
"""Packages, each with those that it must not import."""

LAYERS = (
    ("jfb.config", "jfb.status"),
    ("jfb.store", "jfb.images", "jfb.norms", "jfb.rows", "jfb.folding", "jfb.learned_start"),
    ("jfb.network",),
    ("jfb.contraction", "jfb.mixed_precision"),
    ("jfb.monotone_network",),
    ("jfb.solvers", "jfb.architectures"),
    ("jfb.label_stop",),
    ("jfb.solution",),
    ("jfb.prediction", "jfb.gradients", "jfb.theory"),
    ("jfb.layer",),
    (
        "jfb.onnx.file",
        "jfb.onnx.iteration",
        "jfb.onnx.maps",
        "jfb.onnx.loop",
        "jfb.onnx.network",
        "jfb.onnx.fused",
        "jfb.onnx.one_row",
    ),
    ("jfb.checkpoint",),
    ("jfb.export", "jfb.hub"),
)
"""The modules of ``jfb`` from the bottom up: each imports lower layers, or siblings in its own package."""

WITHOUT_TORCH = ("jfb", "jfb.config", "jfb.store", "jfb.images", "jfb.status")


@cache
def modules(package: str) -> dict[str, Path]:
    """The modules of a package by name, packages among them under their own."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every name that a module imports, also inside functions, except for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=otherwise):
                for part in otherwise:
                    yield from imported_names(part)
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                raise AssertionError(f"line {node.lineno}: a relative import")
            case _:
                yield from imported_names(node)


@cache
def imports(package: str) -> dict[str, set[str]]:
    """The modules of a package, each with the modules of this project that it imports."""
    known = {name for folder in FORBIDDEN for name in modules(folder)}
    found: dict[str, set[str]] = {}
    for module, path in modules(package).items():
        names = set(imported_names(ast.parse(path.read_text())))
        found[module] = {name if name in known else name.rpartition(".")[0] for name in names} & known
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_what_they_may(package: str) -> None:
    arrows = {f"{module} -> {target}" for module, targets in imports(package).items() for target in targets}
    wrong = sorted(arrow for arrow in arrows if arrow.partition(" -> ")[2].partition(".")[0] in FORBIDDEN[package])
    assert not wrong


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_module_imports_itself_through_others(package: str) -> None:
    try:
        TopologicalSorter(imports(package)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def layer(module: str) -> int:
    (found,) = (i for i, names in enumerate(LAYERS) if any(f"{module}.".startswith(f"{name}.") for name in names))
    return found


def test_jfb_imports_downwards() -> None:
    upwards = [
        f"{module} -> {target}"
        for module, targets in imports("jfb").items()
        for target in targets - {"jfb"}  # which itself imports nothing
        if layer(target) > layer(module) or (layer(target) == layer(module) and target.split(".")[1] != module.split(".")[1])
    ]
    assert not upwards


def test_what_the_http_process_reads_models_with_needs_no_torch() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "safetensors"}
    program = f"import sys, {', '.join(WITHOUT_TORCH)}; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]"
