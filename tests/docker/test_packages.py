"""What the images install, against what the code imports."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COME_ALONG = {"_typeshed", "pydantic_core"}
"""Packages that another one brings: the type checker, and pydantic."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imports(folder: str) -> set[str]:
    """Top-level names of the packages that a folder's files import, ours and the standard library's excepted."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - COME_ALONG - {"jfb", "training", "app"}


def distribution(requirement: str) -> str:
    """The name in a requirement, in the form of PEP 503."""
    return re.sub(r"[-_.]+", "-", re.split(r"[>=<;\[ ]", requirement)[0]).lower()


@pytest.mark.parametrize(
    ("folder", "extras"), [("jfb", ["hub"]), ("training", ["train", "rivals"]), ("app", ["serve", "grpc", "otel", "ray"])]
)
def test_every_package_that_a_room_imports_is_in_its_extras(folder: str, extras: list[str]) -> None:
    required = PROJECT["dependencies"] + [one for extra in extras for one in PROJECT["optional-dependencies"][extra]]
    named = {distribution(one) for one in required}
    installed = packages_distributions()
    imported = imports(folder)
    assert imported >= {"torch", "numpy"}
    for name in imported:
        assert named & {distribution(one) for one in installed.get(name, [name])}, name


def test_the_server_does_not_install_what_only_training_needs() -> None:
    server = {distribution(one) for one in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["serve"]}
    assert not server & {"datasets", "kornia", "matplotlib", "scikit-learn", "tensorboard"}


def test_the_images_install_extras_that_exist() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    packages = [set(found.split()) for found in re.findall(r"requirements\.py ([a-z ]+) \|", dockerfile)]
    project = [set(found.split(",")) for found in re.findall(r'"/source\[(.+)\]"', dockerfile)]
    assert packages == project == [{"serve", "otel", "grpc"}, {"train"}]
    assert PROJECT["optional-dependencies"].keys() >= {"serve", "otel", "grpc", "train"}


def test_image_and_makefile_install_the_same_torch() -> None:
    versions = [
        re.findall(pattern, (ROOT / path).read_text())
        for path, pattern in {
            "Makefile": r"torch==([\d.]+)",
            "docker/Dockerfile": r"ARG TORCH=([\d.]+)",
            "docker/compose.yaml": r"TORCH:-([\d.]+)",
            "docker/wheels/README.md": r"torch==([\d.]+)",
        }.items()
    ]
    assert len(versions[0]) == 1
    assert all(one == versions[0] for one in versions)
