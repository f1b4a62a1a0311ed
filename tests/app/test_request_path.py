"""Which of our files a prediction goes through, from the socket to the response: few, in the documented order."""

import asyncio
import re
import socket
import sys
from pathlib import Path
from types import FrameType

import httpx

from app.http.server import GracefulServer
from app.main import create_app
from app.settings import Settings
from app.supervisor.supervisor import RunFolder
from tests.app.running import RunningServer

APP = Path(__file__).resolve().parents[2] / "app"
ARCHITECTURE = APP.parent / "docs" / "architecture.md"
MAX_FILES = 10


async def files_of_a_request(app_server: GracefulServer, listener: socket.socket) -> list[str]:
    """The files in app/ whose code runs for one POST /predict on a connection of its own, in the order of their first calls.

    That is, for each of two, because now and then an engine says what it serves while a request runs.
    """
    found: dict[str, None] = {}
    requests: list[dict[str, None]] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        file = Path(frame.f_code.co_filename)
        if APP in file.parents:
            found.setdefault(str(file.relative_to(APP)))

    serving = asyncio.create_task(app_server.serve([listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer key"}) as client:
        while not app_server.started:
            await asyncio.sleep(0.01)
        for attempt in range(3):  # caches are filled by the first
            found = {}
            async with httpx.AsyncClient(base_url=url, headers=client.headers) as fresh:
                if attempt:
                    sys.setprofile(profile)
                answer = await fresh.post("/predict", json={"inputs": [[0, 1, 2, 3]], "max_iterations": 3})
                sys.setprofile(None)
            assert answer.status_code == 200, answer.text
            requests.append(found)
    app_server.should_exit = True
    await serving
    return [file for file in requests[1] if file in requests[2]]


def test_a_prediction_goes_through_few_files_in_the_documented_order(server: RunningServer) -> None:
    arguments = Path(f"/proc/{server.worker_pid()}/cmdline").read_bytes().split(b"\0")
    folder = Path(arguments[arguments.index(b"app.cli.http_worker") + 1].decode())
    settings = Settings(default_model="slow", api_keys="key")  # type: ignore[arg-type]
    app = create_app(settings, RunFolder(folder, 1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        files = asyncio.run(files_of_a_request(GracefulServer(app, app.state.server), listener))
    assert {"http/connection.py", "routes/predict.py", "engine_client/client.py"} <= set(files)
    assert len(files) <= MAX_FILES, sorted(files)
    _, _, life = ARCHITECTURE.read_text().partition("## The life of a request")
    documented = dict.fromkeys(re.findall(r"`app/([\w/]+\.py):", life))
    assert files == [file for file in documented if file in files]
