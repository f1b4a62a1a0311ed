"""What someone who writes the model store can do to a running server: have a version refused, and nothing else."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.running import RunningServer, rejected, wait_until


@pytest.fixture
def hostile(store: Path, server: RunningServer) -> Iterator[Path]:
    """A copy of a good model, named hostile, for a test to change; removed at the end."""
    model = store / "hostile"
    shutil.copytree(store / "digits" / "2", model / "1")
    yield model / "1"
    shutil.rmtree(model)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not known(server, "hostile/1"), 30, "the version is gone")


def known(server: RunningServer, version: str) -> bool:
    """Whether the server serves or refuses a version."""
    models = server.client.get("/models").json()
    return version in models["refused"] or version.split("/")[0] in [one["name"] for one in models["models"]]


def rescan(server: RunningServer, version: str = "hostile/1") -> str:
    """Have the store read again; return why the version is refused, or nothing if it is served."""
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: known(server, version), 30, "the version is known")
    reason: str = server.client.get("/models").json()["refused"].get(version, "")
    return reason


def replace_by_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def change_config(folder: Path, **arguments: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["arguments"] |= arguments
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_that_lead_nowhere_and_pipes_are_refused(server: RunningServer, hostile: Path, name: str) -> None:
    for target in ("nowhere", name):
        (hostile / name).unlink(missing_ok=True)
        (hostile / name).symlink_to(hostile / target)
    assert "Too many levels of symbolic links" in rescan(server)
    replace_by_pipe(hostile / name)
    wait_until(lambda: "must be a regular file" in rescan(server), 30, "the pipe is refused")
    answer = server.client.post("/v2/repository/models/hostile/load")
    rejected(answer, 400, "hostile/1: ", f"{name}: must be a regular file")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"blocks": 200_000}, "architecture.arguments: must give at most 4096 tensors of weights"),
        ({"channels": [10_000], "pool": [2]}, "architecture.arguments: must give at most 268435456 parameters"),
        ({"channels": [8] * 10_000, "pool": [1] * 10_000}, "architecture.arguments: must give at most 4096 tensors of weights"),
    ],
)
def test_a_config_that_asks_for_a_giant_is_refused(
    server: RunningServer, hostile: Path, arguments: dict[str, Any], reason: str
) -> None:
    change_config(hostile, **arguments)
    assert reason in rescan(server)


def test_folders_that_are_no_versions_are_left_out(server: RunningServer, hostile: Path) -> None:
    for name in ("1" * 20, "-1", os.fsdecode(b"\xff"), "2"):
        (hostile.parent / name).mkdir()
    (hostile.parent / "3").symlink_to(hostile.parent / "3")
    (hostile / os.fsdecode(b"\xff.json")).touch()
    assert rescan(server) == ""
    (model,) = [one for one in server.client.get("/models").json()["models"] if one["name"] == "hostile"]
    assert model["versions"] == [1]
    assert list(model["refused"]) == ["2"]


def test_weights_that_are_truncated_while_they_are_loaded_end_nothing(server: RunningServer, hostile: Path) -> None:
    weights = hostile / "model.safetensors"
    content = weights.read_bytes()
    stop = threading.Event()

    def shake() -> None:
        while not stop.is_set():
            weights.write_bytes(content)
            os.truncate(weights, len(content) // 2)

    shaking = threading.Thread(target=shake)
    shaking.start()
    try:
        answers = [server.client.post("/v2/repository/models/hostile/load") for _ in range(4)]
    finally:
        stop.set()
        shaking.join()
    assert {answer.status_code for answer in answers} <= {200, 400}


def test_side_files_that_would_block_or_are_no_json_are_left_out(server: RunningServer, store: Path, hostile: Path) -> None:
    replace_by_pipe(hostile / "metrics.json")
    (hostile / "samples.json").write_text("[" * 100_000)
    assert rescan(server) == ""
    assert server.client.get("/models/hostile").json()["metrics"] is None
    assert server.client.get("/models/hostile/samples").json() == []
    assert server.client.get("/openapi.json").status_code == 200
