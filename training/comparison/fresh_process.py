"""Fresh process: run a function where nothing else has used memory yet."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from threading import Thread
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_fresh_process(function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
    """Call a function in a new process, which ends if this one is killed, and return its result or raise its exception."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_exit_with_parent) as pool:
        return pool.submit(function, *arguments, **named).result()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)  # the function may need half an hour more, for a result that is no longer wanted

    Thread(target=wait_for_parent, daemon=True).start()
