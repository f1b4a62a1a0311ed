"""How the kernel shares a core between the server's processes."""

import os
from contextlib import suppress


def let_steps_end() -> None:
    """Have this process, and those that it starts, wait for their turn when they wake.

    By default whoever wakes interrupts whoever computes. Where the HTTP process and the engine share a core, each request that
    arrives would interrupt a step and empty the caches that it works in (measured in ``benchmarks/results/serving.md``). On
    cores of their own the processes do not notice.
    """
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # some sandboxes forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
