"""Async tests run on asyncio, and those of a module share one event loop, as their engine's supervisor needs one that lasts."""

import pytest


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"
