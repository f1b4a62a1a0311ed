"""What the kernel says of the processes of a server."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, subprocess, sys
from app.cli.serve import _let_steps_finish

_let_steps_finish()
print(os.sched_getscheduler(0))
subprocess.run([sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"], check=True)
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has it")
def test_a_process_and_those_that_it_starts_wait_for_their_turn() -> None:
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    found = subprocess.run([sys.executable, "-u", "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert found.stdout.split() == [str(os.SCHED_BATCH)] * 2
