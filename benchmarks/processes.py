"""Processes under measurement: what they have used, and where they run (Linux)."""

import os
from pathlib import Path


def processor_seconds(process: int) -> float:
    """Return the CPU time of a process so far, over all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(process: int, module: str) -> list[int]:
    """Return the child processes that run a module, such as ``app.engine``."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes()]


def pin(process: int, cores: set[int]) -> None:
    """Pin every thread that a process has by now to these cores; threads and children that it starts later inherit them."""
    for thread in entries(f"/proc/{process}/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue


def entries(folder: str) -> list[str]:
    """Return the names in a folder of ``/proc``, and none if its process has exited."""
    try:
        return os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return []
