"""What the images install, against what the project says it needs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_server_image_installs_only_what_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {*project["dependencies"], *project["optional-dependencies"]["otel"]}
    lines = [line.split("#")[0].strip() for line in (ROOT / "docker" / "server.txt").read_text().splitlines()]
    assert set(filter(None, lines)) <= {re.split(r"[>=<;\[ ]", one)[0] for one in named}


def test_image_and_makefile_install_the_same_torch() -> None:
    versions = [
        re.findall(pattern, (ROOT / path).read_text())
        for path, pattern in {
            "Makefile": r"torch==([\d.]+)",
            "docker/Dockerfile": r"ARG TORCH=([\d.]+)",
            "docker/compose.yaml": r"TORCH:-([\d.]+)",
        }.items()
    ]
    assert versions[0] == versions[1] == versions[2]
    assert len(versions[0]) == 1
