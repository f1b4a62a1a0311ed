"""Every command and every program in the tutorial and the guides, run in their order as a reader runs them.

In a page, a block of ``sh`` is run, a block with a title is a file of that name, a block of ``python`` without one is a program.
A line that starts the server starts it in the background. What cannot be run here says so in a comment above it.
A curl command in the last cell of a table's row is run after the blocks.

Pages that train or export take a minute together: `make test-long` runs them. Other tests cover what they describe, step by step.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.app.running import wait_until
from tests.ports import free_port

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"(<!-- not run: [^>]*-->\n)?^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
CELL = re.compile(r"^\|.*\| `(curl [^`]*)` \|$", re.MULTILINE)
"""A curl command in the last cell of a table's row."""
PAGES = ["tutorial.md", *(f"guides/{path.name}" for path in sorted((DOCS / "guides").glob("*.md")))]
LONG = {"tutorial.md"} | {
    f"guides/{name}.md"
    for name in (
        *("coming_from", "deploy", "export", "fewer_iterations", "iterations_matter", "other_clients", "own_network"),
        "tolerance",
    )
}
MAY_BE_LEFT_OUT = {
    "guides/deploy.md": 1,
    "guides/observe.md": 1,
    "guides/other_clients.md": 2,
    "guides/own_network.md": 1,
    "tutorial.md": 1,
}

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@contextmanager
def server(command: str, folder: Path, environment: dict[str, str], port: int) -> Iterator[None]:
    """The server of a page, ready; it stops at the end of the page."""
    log_file = folder / f"{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_ready(port, process, log_file), 120, "the page's server is ready")
        yield
    finally:
        process.terminate()
        assert process.wait(timeout=40) == 0


def is_ready(port: int, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def write_metadata(package: Path) -> None:
    """Write the metadata that pip would install for a package."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    facts = package / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    (facts / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.long if page in LONG else ()) for page in PAGES])
def test_the_commands_of_a_page_work(page: str, digits_store: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_store, tmp_path / "model_store")  # of `make run`, which the pages assume
    shutil.copytree(digits_store / "digits", tmp_path / "model_store" / "another")  # with several models, commands must name one
    ports = {"8000": str(free_port()), "8001": str(free_port()), "9100": str(free_port())}
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(DOCS.parent), str(tmp_path / "my-network")]),
        "JFB_PORT": ports["8000"],
        "JFB_DRAIN_SECONDS": "0",
        "OMP_NUM_THREADS": "1",
    }
    environment = {name: value for name, value in environment.items() if name not in ("JFB_MODEL_STORE", "JFB_RUNS")}
    left_out = ran = 0
    programs: list[str] = []
    with ExitStack() as running:
        for comment, indent, language, title, text in BLOCK.findall((DOCS / page).read_text()):
            body = re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
            if comment:
                left_out += 1
            elif title:
                (tmp_path / title).parent.mkdir(exist_ok=True)
                (tmp_path / title).write_text(with_ports(body, ports))
                if Path(title).name == "pyproject.toml":
                    write_metadata((tmp_path / title).parent)
            elif language == "python":
                programs.append(with_ports(body, ports))
                ran += 1
            elif language == "sh":
                run_programs(programs, tmp_path, environment)
                body = with_ports(body, ports)
                servers = re.findall(r"^python -m app(?! predict| alias|.*--help).*$", body, re.MULTILINE)
                rest = re.sub(r"^python -m app(?! predict| alias|.*--help).*$", "", body, flags=re.MULTILINE)
                rest = rest.replace("python -m app predict", f"python -m app predict --url http://127.0.0.1:{ports['8000']}")
                if rest.strip():
                    run(["bash", "-euo", "pipefail", "-c", rest], tmp_path, environment)
                for command in servers:
                    port = re.search(r" --port (\d+)", command)
                    running.enter_context(server(command, tmp_path, environment, int(port[1] if port else ports["8000"])))
                ran += 1
        run_programs(programs, tmp_path, environment)
        for command in CELL.findall((DOCS / page).read_text()):
            run(["bash", "-euo", "pipefail", "-c", with_ports(command, ports)], tmp_path, environment)
    assert ran >= 2
    assert left_out == MAY_BE_LEFT_OUT.get(page, 0)


def test_every_example_names_its_model() -> None:
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        for *_, text in BLOCK.findall(page.read_text()):
            commands = re.sub(r"\\\n", " ", text).splitlines()
            nameless = [line for line in commands if re.search(r":\d+/predict\b|app predict (?!.*--model)", line)]
            assert not nameless, (page, nameless)


def with_ports(text: str, ports: dict[str, str]) -> str:
    for port, instead in ports.items():
        text = re.sub(rf"(?<=[: ]){port}\b", instead, text)
    return text


def run_programs(programs: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run programs in one process, each as if it were alone, and forget them: importing PyTorch takes longer than they do."""
    if programs:
        together = "".join(f"exec(compile({program!r}, 'program {k}', 'exec'), {{}})\n" for k, program in enumerate(programs))
        run([sys.executable, "-c", together], folder, environment)
        programs.clear()


def run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    # A status in a comment next to a command is the status that the command prints.
    promised = re.findall(r"%\{http_code\}.*# (\d{3})$", command[-1], re.MULTILINE)
    assert re.findall(r"(?:^|\})(\d{3})$", done.stdout, re.MULTILINE) == promised
