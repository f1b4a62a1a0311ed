"""The folder of a running server: made where it can be written, removed at the end, also what a killed server left."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from app.supervisor import lifeline
from app.supervisor.process import Command, SupervisedProcess, read_status
from app.supervisor.supervisor import RunFolder, RunFolderError, Supervisor, remove_abandoned


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short path, as a Unix socket needs."""
    with tempfile.TemporaryDirectory(prefix="jfb-test-") as folder:
        yield Path(folder)


def folder_in(parent: Path, number: int) -> RunFolder:
    return RunFolder(parent / f"jfb-server-{number:016x}", 1)


def test_what_a_killed_server_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from app.supervisor.supervisor import RunFolder
RunFolder(Path(sys.argv[1]), 1).create()
os.kill(os.getpid(), 9)
"""
    killed = folder_in(tmp_path, 1)
    subprocess.run([sys.executable, "-c", program, str(killed.path)], check=False, timeout=60)
    (killed.metrics / "counter_1.db").touch()
    running = folder_in(tmp_path, 2)
    running.create()
    (tmp_path / "jfb-server-notes").mkdir()
    (tmp_path / f"jfb-server-{3:016x}").symlink_to(tmp_path / "jfb-server-notes")
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {running.path.name, "jfb-server-notes", f"jfb-server-{3:016x}"}
    assert running.metrics.is_dir()
    running.remove()
    assert not running.path.exists()


def no_folder(parent: Path) -> Path:
    return parent / "nowhere"


def too_long(parent: Path) -> Path:
    return parent / ("long" * 25)


def file(parent: Path) -> Path:
    (parent / "file").touch()
    return parent / "file"


@pytest.mark.parametrize("place", [no_folder, too_long, file])
def test_a_temporary_folder_that_cannot_be_used_is_named(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    where = place(tmp_path)
    if place is too_long:
        where.mkdir()
    with pytest.raises(RunFolderError, match=rf"^TMPDIR must be a folder with a short path .*\(got {where}: "):
        folder_in(where, 1).create()
    assert not list(where.glob("*")), "nothing is left"


def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunFolderError, match=r"^TMPDIR must be .* 1,048,576 bytes .*: No space left on device\)$"):
        folder_in(tmp_path, 1).create()
    assert not list(tmp_path.iterdir())


def test_no_temporary_folder_at_all_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(RunFolderError, match=r"^TMPDIR must be .*: No usable temporary directory"):
        Supervisor(Settings())


@pytest.mark.anyio
async def test_a_disk_that_is_full_later_ends_no_supervision(tmp_path: Path) -> None:
    command = Command("engine", 0, "this_module_does_not_exist", [], "{}")
    process = SupervisedProcess(command, tmp_path / "nowhere" / "status.json")
    process.start()
    async with asyncio.timeout(60):
        while process._status.consecutive_exits < 2:
            await asyncio.sleep(0.05)
        process.stop()
        await process.wait(10)
    assert read_status(tmp_path / "nowhere" / "status.json").restarts == 0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_only_this_user_can_enter(tmp_path: Path) -> None:
    folder = folder_in(tmp_path, 1)
    folder.create()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.path.stat().st_uid == os.getuid()
    folder.remove()


def test_an_engine_that_loads_many_models_is_not_taken_for_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "HEARTBEAT_SECONDS", 0.001)
    own, theirs = socket.socketpair()
    with own, theirs:
        child = lifeline.Lifeline.__new__(lifeline.Lifeline)
        child._socket = own
        theirs.settimeout(30)
        with child.beating():
            for _ in range(3):
                assert set(theirs.recv(1)) == set(lifeline.ALIVE)
