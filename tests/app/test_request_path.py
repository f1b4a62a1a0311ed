"""Which of our files a prediction goes through, from the socket to the response: few, in the documented order, each once."""

import asyncio
import dis
import re
import socket
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import httpx
import pytest

from app.http.server import GracefulServer
from app.main import create_app
from app.observability.request_log import WRITE_SECONDS
from app.settings import Settings
from app.supervisor.supervisor import RunFolder
from tests.app.running import RunningServer

APP = Path(__file__).resolve().parents[2] / "app"
ARCHITECTURE = APP.parent / "docs" / "architecture.md"
MAX_FILES = 10


class Visits:
    """The files in app/ whose code runs while this is the profiler, in the order in which they are entered.

    A file is left when its last function has returned; a coroutine that waits has not.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self._running: Counter[str] = Counter()
        self._suspended: set[FrameType] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if APP not in path.parents:
            return
        file = str(path.relative_to(APP))
        if event == "call" and frame in self._suspended:
            self._suspended.remove(frame)
        elif event == "call":
            self._running[file] += 1
            if self._running[file] == 1:
                self.files.append(file)
        elif event == "return" and dis.opname[frame.f_code.co_code[frame.f_lasti]] == "YIELD_VALUE":
            self._suspended.add(frame)
        elif event == "return":
            self._running[file] -= 1


async def visits_of_a_request(app_server: GracefulServer, listener: socket.socket) -> list[str]:
    """What one POST /predict on a connection of its own visits; of several, those of the shortest way."""
    requests: list[list[str]] = []

    serving = asyncio.create_task(app_server.serve([listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer key"}) as client:
        while not app_server.started:
            await asyncio.sleep(0.01)
        for attempt in range(6):  # caches are filled by the first
            profile = Visits()
            async with httpx.AsyncClient(base_url=url, headers=client.headers) as fresh:
                if attempt:
                    sys.setprofile(profile)
                answer = await fresh.post("/predict", json={"inputs": [[0, 1, 2, 3]], "max_iterations": 3})
                sys.setprofile(None)
            assert answer.status_code == 200, answer.text
            requests.append(profile.files)
            await asyncio.sleep(2 * WRITE_SECONDS)  # or what was counted might be written during the next request
    app_server.should_exit = True
    await serving
    visits = min(requests[1:], key=len)
    return visits[: len(visits) - visits[::-1].index("http/connection.py")]  # without what is cleaned up after the response


def test_a_prediction_goes_through_few_files_in_the_documented_order_and_not_back(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine_client.client.REFRESH_SECONDS", 60.0)  # or an engine might say what it serves meanwhile
    arguments = Path(f"/proc/{server.worker_pid()}/cmdline").read_bytes().split(b"\0")
    folder = Path(arguments[arguments.index(b"app.cli.http_worker") + 1].decode())
    settings = Settings(default_model="slow", api_keys="key")  # type: ignore[arg-type]
    app = create_app(settings, RunFolder(folder, 1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        visits = asyncio.run(visits_of_a_request(GracefulServer(app, app.state.server), listener))
    files = list(dict.fromkeys(visits))
    assert {"http/connection.py", "routes/predict.py", "engine_client/client.py"} <= set(files)
    assert len(files) <= MAX_FILES, visits
    _, _, life = ARCHITECTURE.read_text().partition("## The life of a request")
    documented = dict.fromkeys(re.findall(r"`app/([\w/]+\.py):", life))
    assert files == [file for file in documented if file in files]
    # The socket is where the way begins and ends, and messages are what is carried along it.
    once = [file for file in visits if file not in ("http/connection.py", "engine_client/messages.py")]
    assert len(once) == len(set(once)), visits
