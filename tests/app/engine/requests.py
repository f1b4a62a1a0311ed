"""Requests to the engine process, and what jfb says that their answers are."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import jfb
from app.engine_client.client import Computed, EngineClient
from app.engine_client.messages import Question


def pictures(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Inputs of the digits model."""
    return np.random.default_rng(seed).uniform(0, 16, (rows, 1, 8, 8)).astype(np.float32)


async def ask(client: EngineClient, inputs: NDArray[np.float32], tolerance: float = 1e-4, cap: int = 100) -> Computed:
    """The digits model's answer."""
    rows = len(inputs)
    return await client.predict(Question("digits", 1, [tolerance] * rows, [cap] * rows, [None] * rows), inputs)


def slow(client: EngineClient, cap: int, rows: int = 1, deadline: float | None = None) -> "asyncio.Task[Computed]":
    """A request that takes exactly ``cap`` iterations, under way."""
    inputs = np.ones((rows, 4), dtype=np.float32)
    question = Question("slow", 1, [1e-30] * rows, [cap] * rows, [deadline] * rows)
    return asyncio.create_task(client.predict(question, inputs))


def assert_right(store: Path, inputs: NDArray[np.float32], answers: list[Computed], tolerance: list[float]) -> None:
    """Answers of one row each are what ``jfb.predict`` computes from the same folder."""
    found = jfb.load(store / "digits" / "1")
    expected = jfb.predict(
        found.network, torch.from_numpy(inputs), tolerance=torch.tensor(tolerance, dtype=torch.float32), max_iterations=100
    )
    logits = np.concatenate([answer.logits for answer in answers])
    assert logits == pytest.approx(expected.logits.numpy(), abs=1e-5)
    assert (logits.argmax(1) == expected.logits.numpy().argmax(1)).all()
    assert [answer.status[0] for answer in answers] == expected.solution.status
    difference = np.array([answer.iterations[0] for answer in answers]) - expected.solution.iterations.numpy()
    # A count may differ by one where rounding falls on the very threshold.
    assert np.abs(difference).max() <= 1
    assert np.count_nonzero(difference) <= max(1, len(answers) // 200)
