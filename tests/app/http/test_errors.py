"""What a bug in a handler comes to: an answer in the form of every error, whether FastAPI calls the handler or we do."""

import asyncio
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from app.supervisor.supervisor import RunFolder


@pytest.mark.parametrize(("method", "path"), [("POST", "/predict"), ("GET", "/models")])
def test_a_bug_is_answered_with_500_and_says_nothing_of_itself(method: str, path: str, tmp_path: Path) -> None:
    app = create_app(Settings(), RunFolder(tmp_path, 0))
    app.state.server.api_keys = "what no code expects"

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, headers={"x-request-id": "mine"}, json={})

    answer = asyncio.run(request())
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
    assert answer.json() == {"error": "server: internal error (see its log)"}
