"""What the tests of several rooms share, and which of them are slow."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# The workers of pytest-xdist and their processes share the cores: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock

from tests.app.running import RunningServer, running_server

SLOW_FIXTURES = {
    *("server", "strict_server", "keyed_server", "special_server", "digits_server"),
    *("digits_store", "quick"),  # which train
    "site",
}
SLOW_HELPER = "running_server"
SLOW_PROGRAMS = {"app", "app.engine", "training"}

NO_BROWSER = "no chromium on this machine: apt-get install chromium"

# What takes longest comes first, so that the two workers of `make test` end at about the same time.
STARTED_FIRST = [
    "app/routes/test_pages.py",  # and with it all files that share its servers
    "security/",
    "app/engine/test_supervisor.py",
    "app/supervisor/test_http_workers.py",
    "docs/test_site.py",
    "app/engine/test_process.py",
    "benchmarks/test_soak.py",
    "docs/test_guides.py",
    "jfb/test_export.py",
    "test_commandline.py",
    "jfb/architectures/test_authors_resnet.py",
    "app/http/test_server.py",
    "app/engine/test_every_backend.py",
    "training/acceleration/test_accelerate.py",
    "jfb/test_export_mixing.py",
    "app/engine/test_deterministic.py",
    "benchmarks/test_few_steps.py",
]

SHARING = [
    (
        *("app/routes/", "app/cli/test_predict.py", "app/http/test_auth.py", "app/inference/test_open_inference.py"),
        *("app/observability/", "app/supervisor/test_process.py", "app/test_", "docker/test_dashboard.py", "test_end_to_end.py"),
    ),
    ("security/",),
]
"""Files that use the same servers of a session: one worker runs them all, as each worker starts its own."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect the tests without garbage collections, which take a sixth of the time while libraries are imported."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start a server or train as slow, by fixtures and by what their file imports; order and group the files."""
    items.sort(key=lambda item: _place(_file(item)))
    for item in items:
        assert isinstance(item, pytest.Function)
        file = _file(item)
        item.add_marker(pytest.mark.xdist_group(next((files[0] for files in SHARING if file.startswith(files)), file)))
        if SLOW_FIXTURES & set(item.fixturenames) or hasattr(item.module, SLOW_HELPER):
            item.add_marker("slow")
        if "digits_store" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(300))  # the first of them trains


def _file(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).as_posix()


def _place(file: str) -> int:
    return next((place for place, start in enumerate(STARTED_FIRST) if file.startswith(start)), len(STARTED_FIRST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line how many tests of the pages were skipped, which is easily missed among the others."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NO_BROWSER in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} browser tests were skipped: {NO_BROWSER}", yellow=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Remember the test that runs, for the check below."""
    global _running
    _running = item
    try:
        return (yield)
    finally:
        _running = None


_running: pytest.Item | None = None


def _refuse_slow_programs(event: str, arguments: tuple[object, ...]) -> None:
    """Fail a test that starts the server or the training program without the mark, so that `make check` stays fast."""
    if event != "subprocess.Popen" or _running is None or _running.get_closest_marker("slow"):
        return
    command = arguments[1]
    if isinstance(command, list | tuple) and "-m" in command and command[command.index("-m") + 1] in SLOW_PROGRAMS:
        pytest.fail(f"{_running.nodeid} starts a server or trains: mark it with pytest.mark.slow")


sys.addaudithook(_refuse_slow_programs)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large reference data next to the checkout; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("no folder of reference data next to the checkout")
    return SHARED


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the digits model, trained by the command of `make run`, once for all workers. Read only."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has a folder of its own in it
    store = base / "digits" / "store"
    with FileLock(base / "digits.lock"):  # the others wait here for the first
        if not store.is_dir():
            subprocess.run(
                [sys.executable, "-m", "training", "train", "digits"],
                env={**os.environ, "JFB_MODEL_STORE": str(store), "JFB_RUNS": str(base / "digits" / "runs")},
                check=True,
                capture_output=True,
                timeout=300,
            )
    return store


@pytest.fixture(scope="session")
def digits_server(digits_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of the trained digits model, ready."""
    with running_server(digits_store, tmp_path_factory.mktemp("digits_server") / "log") as running:
        running.wait_until_ready()
        yield running
