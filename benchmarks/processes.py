"""Processes under measurement: what they have used, and where they run (Linux)."""

import os
from pathlib import Path


def processor_seconds(process: int) -> float:
    """Of a process so far, on all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pin(process: int, cores: set[int]) -> None:
    """Keep every thread that a process has by now to some cores; its children inherit them, unless they choose otherwise."""
    for thread in entries(f"/proc/{process}/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue


def entries(folder: str) -> list[str]:
    """The names in a folder of ``/proc``; none if its process has gone."""
    try:
        return os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return []
