"""Requests to the engine, and what jfb says that their results are."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import jfb
from app.engine.running_request import RunningRequest
from app.engine_client.client import Engines
from app.engine_client.messages import Request, Result, Stop


def sent_request(
    number: int,
    inputs: NDArray[np.float32],
    tolerance: list[float],
    max_iterations: list[int],
    deadline: Sequence[float | None],
    *,
    solver: str | None = None,
    stop: Stop = "tolerance",
    session: str | None = None,
    streamed: bool = False,
    client: str = "",
) -> Request:
    """A request as the engine receives it."""
    return Request(
        "model",
        1,
        inputs.astype("<f4").tobytes(),
        tolerance,
        max_iterations,
        list(deadline),
        solver=solver,
        stop=stop,
        session=session,
        streamed=streamed,
        client=client,
        id=number,
    )


def running_request(number: int, inputs: NDArray[np.float32], *limits: Any, **options: Any) -> RunningRequest:
    """The same as the scheduler gets it, for a model whose rows have the shape of the inputs."""
    return RunningRequest(number, sent_request(number, inputs, *limits, **options), inputs.shape[1:])


def pictures(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Inputs of the digits model."""
    return np.random.default_rng(seed).uniform(0, 16, (rows, 1, 8, 8)).astype(np.float32)


async def predict(engines: Engines, inputs: NDArray[np.float32], tolerance: float = 1e-4, cap: int = 100) -> Result:
    """The digits model's result."""
    rows = len(inputs)
    return await engines.predict(Request("digits", 1, inputs.tobytes(), [tolerance] * rows, [cap] * rows, [None] * rows))


def slow(engines: Engines, cap: int, rows: int = 1, deadline: float | None = None) -> "asyncio.Task[Result]":
    """A request that takes exactly ``cap`` iterations, in flight."""
    inputs = np.ones((rows, 4), dtype=np.float32).tobytes()
    return asyncio.create_task(engines.predict(Request("slow", 1, inputs, [1e-30] * rows, [cap] * rows, [deadline] * rows)))


def assert_right(store: Path, inputs: NDArray[np.float32], results: list[Result], tolerance: list[float]) -> None:
    """Results of one row each are what ``jfb.predict`` computes from the same folder."""
    found = jfb.load(store / "digits" / "1")
    expected = jfb.predict(
        found.network, torch.from_numpy(inputs), tolerance=torch.tensor(tolerance, dtype=torch.float32), max_iterations=100
    )
    logits = np.concatenate([result.logits_array() for result in results])
    assert logits == pytest.approx(expected.logits.numpy(), abs=1e-5)
    assert (logits.argmax(1) == expected.logits.numpy().argmax(1)).all()
    assert [result.status[0] for result in results] == expected.solution.status
    difference = np.array([result.iterations[0] for result in results]) - expected.solution.iterations.numpy()
    # A count may differ by one where rounding falls on the very threshold.
    assert np.abs(difference).max() <= 1
    assert np.count_nonzero(difference) <= max(1, len(results) // 200)
