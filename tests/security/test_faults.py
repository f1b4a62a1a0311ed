"""Disks that are slow or full, and processes that hang: the server goes on, or ends with a message."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from app.http import store_reads
from app.http.errors import ApiError
from app.http.store_reads import MAX_READS, read_store
from tests.app.running import running_server


@pytest.mark.anyio
async def test_a_disk_that_does_not_answer_is_503_and_blocks_no_thread_that_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(store_reads, "READ_SECONDS", 0.1)
    for _ in range(2 * MAX_READS):  # more than there are threads
        with pytest.raises(ApiError, match=r"model store: must answer within 0\.1 s") as refused:
            await read_store(answers.wait)
        assert refused.value.status_code == 503
    assert await asyncio.to_thread(lambda: 1) == 1
    answers.set()
    monkeypatch.setattr(store_reads, "READ_SECONDS", 30)
    assert await read_store(lambda: 2) == 2, "the threads are free again"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_a_temporary_folder_that_cannot_be_used_is_a_message_and_status_3(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("a path that is too long for a socket" * 3)
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder), "JFB_MODEL_STORE": str(store), "JFB_PORT": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "app"], env=environment, check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 3
    assert ended.stderr.startswith("TMPDIR must be a folder with a short path where 1,048,576 bytes can be written (got ")
    assert "Traceback" not in ended.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.long
def test_sigterm_ends_a_server_all_of_whose_processes_hang(store: Path, tmp_path: Path) -> None:
    with running_server(store, tmp_path / "log") as server:
        server.wait_until_ready()
        for pid in (server.worker_pid(), server.engine_pid()):
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert time.monotonic() - began < 40
