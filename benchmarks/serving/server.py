"""One server with all its processes on its cores."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.processes import entries, pin

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
STOP_SECONDS = 15
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1"}

_PR_SET_CHILD_SUBREAPER = 36


class ServerFailed(Exception):  # noqa: N818
    """The server exited, or did not answer in time."""


@dataclass(frozen=True)
class RunningServer:
    """A server and all processes that it started."""

    port: int
    cores: set[int]

    def pin(self) -> None:
        """Pin every thread that exists by now to the cores."""
        for process in descendants():
            pin(process, self.cores)

    def memory(self) -> float:
        """MiB resident in all processes together; shared pages count in each."""
        pages = 0
        for process in descendants():
            try:
                pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def adopt_orphans() -> None:
    """Make this process the new parent of descendants whose parents exit, so that it can stop them (Linux)."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("prctl failed: this benchmark needs Linux")


@contextmanager
def running(
    command: list[str], port: int, cores: set[int], request: bytes, log: Path, *, tree: Path = ROOT
) -> Iterator[RunningServer]:
    """Start a server on some cores, wait until it answers a request, and stop it with all its processes at the end.

    Args:
        command: starts the server.
        port: that the server listens on.
        cores: for all its processes.
        request: the bytes of one.
        log: file for its output.
        tree: folder of its Python modules.

    Raises:
        ServerFailed: if it exits or does not answer, with the end of its log.
    """
    path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **ONE_THREAD, **SILENT, "PYTHONPATH": path}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    try:
        _wait_until_answered(process, port, request, log)
        server = RunningServer(port, cores)
        server.pin()
        yield server
    finally:
        _stop(process)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_answered(process: "subprocess.Popen[bytes]", port: int, request: bytes, log: Path) -> None:
    body = request.partition(b"\r\n\r\n")[2]
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            response = httpx.post(
                f"http://127.0.0.1:{port}/predict", content=body, headers={"content-type": "application/json"}, timeout=30
            )
            if response.status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ServerFailed(log.read_text(errors="replace")[-2000:] or "no response, and an empty log")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    until = time.monotonic() + STOP_SECONDS
    while descendants() and time.monotonic() < until:
        process.poll()
        _reap()
        time.sleep(0.05)
    while left := descendants():
        for one in left:
            try:
                os.kill(one, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.poll()
        _reap()
        time.sleep(0.05)


def _reap() -> None:
    """Collect adopted processes that have exited."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def descendants() -> list[int]:
    """All processes below this one."""
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        parent = queue.pop()
        for task in entries(f"/proc/{parent}/task"):
            try:
                children = [int(child) for child in Path(f"/proc/{parent}/task/{task}/children").read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += children
            queue += children
    return found
