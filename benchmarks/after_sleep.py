"""How much longer the code of a request takes when the process has just slept, as it does between the requests of a lone client.

The same functions are timed again and again, and each time after a sleep, in which caches and branch predictors get cold, and a
virtual core may have to be scheduled by its host again.

    python -m benchmarks.after_sleep model_store/digits/1
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from app.engine_client.messages import Result, ServedVersion, Timings
from app.inference.numbers import parse_numbers
from app.inference.response import predict_response

REPEATS = 500
SLEEP_SECONDS = 0.0003


def microseconds(function: Callable[[], object], sleep_seconds: float) -> float:
    """The median time of a function, each time after a sleep unless that is zero."""
    times = []
    for _ in range(REPEATS):
        if sleep_seconds:
            time.sleep(sleep_seconds)
        start = time.perf_counter_ns()
        function()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e3


def main(version: Annotated[Path, typer.Argument(help="Folder of a model's version.")]) -> None:
    """Print how long parts of a request take, in microseconds."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    served = ServedVersion("model", 1, (version / "config.json").read_text())
    shape = served.config.input.shape
    inputs = json.dumps(np.zeros((1, *shape), np.int64).tolist()).encode()
    logits = np.random.default_rng(0).normal(size=len(served.config.classes)).astype("<f4").tobytes()
    result = Result(1, logits, [3], [0.01], ["converged"], Timings())
    parts: dict[str, Callable[[], object]] = {
        f"read {np.prod(shape)} numbers": lambda: parse_numbers(inputs, shape, np.dtype(np.float64)),
        "write the response": lambda: msgspec.json.encode(predict_response(served, result)),
    }
    table = Table("part", "again and again, µs", f"after {SLEEP_SECONDS * 1e3:g} ms of sleep, µs")
    for name, function in parts.items():
        table.add_row(name, *(f"{microseconds(function, seconds):.1f}" for seconds in (0.0, SLEEP_SECONDS)))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
