"""Models that come, go and are replaced while the server runs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

import jfb
from app.cli import alias
from jfb import checkpoint
from jfb.store import list_versions, new_version, read_aliases
from tests.app.running import ENDLESS, RunningServer, rejected, rows, running_server, wait_until
from tests.app.store import DIGITS, network_of

INPUTS = np.random.default_rng(7).integers(0, 17, size=(4, 1, 8, 8)).astype(np.float32)
BODY = {"inputs": INPUTS.tolist(), "tolerance": 1e-4, "max_iterations": 200}


def publish(store: Path, seed: int, model: str = "digits") -> int:
    """Add a version with weights of its own."""
    with new_version(store, model) as folder:
        checkpoint.save(folder, DIGITS, network_of(DIGITS, seed))
    return max(list_versions(store / model))


def versions(server: RunningServer, model: str = "digits") -> list[int]:
    answer = server.client.get(f"/models/{model}")
    return answer.json()["versions"] if answer.status_code == 200 else []


def change(server: RunningServer, what: str, model: str = "digits") -> httpx.Response:
    return server.client.post(f"/v2/repository/models/{model}/{what}")


def index(server: RunningServer) -> dict[str, tuple[str, str]]:
    entries = server.client.post("/v2/repository/index").json()
    return {f"{one['name']}/{one.get('version', '')}": (one["state"], one.get("reason", "")) for one in entries}


def probabilities(folder: Path) -> torch.Tensor:
    found = jfb.load(folder)
    offline = jfb.predict(found.network, torch.tensor(INPUTS), tolerance=1e-4, max_iterations=200)
    return offline.logits.double().softmax(1)


def assert_right(answer: httpx.Response, expected: torch.Tensor) -> None:
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose([row["probabilities"] for row in answer.json()["predictions"]], expected, atol=1e-5)


@pytest.fixture(scope="module")
def own_store(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store to change, with digits and slow."""
    own = tmp_path_factory.mktemp("own") / "store"
    for model in ("digits", "slow"):
        shutil.copytree(store / model, own / model)
    shutil.rmtree(own / "digits" / "3")  # the broken one
    return own


@pytest.fixture(scope="module")
def own(own_store: Path) -> Iterator[RunningServer]:
    """A server of that store; every test leaves it serving what the store holds."""
    log = own_store.parent / "log"
    with running_server(own_store, log, default_model="digits", max_iterations_limit=1_000_000) as server:
        server.wait_until_ready()
        yield server


def test_a_new_version_is_served_after_sighup_and_one_that_is_removed_goes(own: RunningServer, own_store: Path) -> None:
    oldest, *others = versions(own)
    newest = publish(own_store, 11)
    assert own.predict(BODY).json()["version"] == others[-1]
    shutil.rmtree(own_store / "digits" / str(oldest))
    own.process.send_signal(signal.SIGHUP)
    wait_until(lambda: versions(own) == [*others, newest], 30, "the store was scanned")
    answer = own.predict(BODY)
    assert answer.json()["version"] == newest
    assert_right(answer, probabilities(own_store / "digits" / str(newest)))
    assert own.predict(BODY, f"/models/digits/versions/{oldest}/predict").status_code == 404


def test_a_new_version_is_found_by_polling_and_a_broken_one_is_not_tried_over_and_over(store: Path, tmp_path: Path) -> None:
    own_store = tmp_path / "store"
    for version in ("1", "2"):
        shutil.copytree(store / "digits" / version, own_store / "digits" / version)
    with running_server(own_store, tmp_path / "log", default_model="digits", poll_seconds=0.1) as server:
        server.wait_until_ready()
        (own_store / "digits" / "3").mkdir()
        (own_store / "digits" / "3" / "config.json").write_text("{")
        publish(own_store, 12)
        wait_until(lambda: versions(server) == [1, 2, 4], 30, "the store was scanned")
        publish(own_store, 13)  # finding this version shows that the store was scanned again
        wait_until(lambda: versions(server) == [1, 2, 4, 5], 30, "the store was scanned again")
        assert server.log.read_text().count("model refused") == 1
        assert "not JSON" in server.client.get("/models/digits").json()["refused"]["3"]


def test_reloads_under_load_drop_no_request_and_every_answer_is_that_of_the_version_it_names(
    own: RunningServer, own_store: Path
) -> None:
    stop = threading.Event()
    answers: list[httpx.Response] = []
    right = {version: probabilities(own_store / "digits" / str(version)) for version in versions(own)}

    def hammer() -> None:
        with httpx.Client(base_url=own.url, timeout=60) as client:
            while not stop.is_set():
                answers.append(client.post("/predict", json=BODY))

    with ThreadPoolExecutor(6) as pool:
        hammering = [pool.submit(hammer) for _ in range(6)]
        try:
            for seed in range(20, 26):
                oldest, *_ = list_versions(own_store / "digits")
                version = publish(own_store, seed)
                right[version] = probabilities(own_store / "digits" / str(version))
                shutil.rmtree(own_store / "digits" / str(oldest))
                before = len(answers)
                assert change(own, "load").status_code == 200
                wait_until(lambda before=before: len(answers) > before + 12, 30, "it went on")  # type: ignore[misc]
        finally:
            stop.set()
        for one in hammering:
            one.result()
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        assert_right(answer, right[answer.json()["version"]])
    assert len({answer.json()["version"] for answer in answers}) >= 6


def test_a_request_whose_version_goes_while_its_body_arrives_is_answered_by_the_next(own: RunningServer, own_store: Path) -> None:
    body = json.dumps(BODY).encode()
    before, host, port = max(versions(own)), own.client.base_url.host, own.client.base_url.port
    with socket.create_connection((host, port), timeout=20) as connection:
        head = f"POST /models/digits/predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:100])
        after = publish(own_store, seed=before + 1)
        shutil.rmtree(own_store / "digits" / str(before))
        assert change(own, "load").status_code == 200
        connection.sendall(body[100:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status, _, rest = answer.partition(b"\r\n")
    assert status == b"HTTP/1.1 200 OK"
    content = json.loads(rest.partition(b"\r\n\r\n")[2])
    assert content["version"] == after
    found = [row["probabilities"] for row in content["predictions"]]
    np.testing.assert_allclose(found, probabilities(own_store / "digits" / str(after)), atol=1e-5)


def test_a_broken_version_is_rejected_with_the_reason_while_the_old_one_serves(own: RunningServer, own_store: Path) -> None:
    *_, other, replaced = versions(own)
    folder, broken = own_store / "digits" / str(replaced), own_store / "digits" / str(replaced + 1)
    expected = probabilities(folder)
    (folder / "model.safetensors").write_bytes(b"garbage")  # into the file that the served weights were read from
    broken.mkdir()
    answer = change(own, "load")
    assert answer.status_code == 400
    for part in (f"digits/{replaced}: ", f"digits/{broken.name}: ", "safetensors"):
        assert part in answer.json()["error"]
    after = own.predict(BODY)
    assert after.json()["version"] == replaced
    assert_right(after, expected)
    refused = own.client.get("/models").json()["refused"]
    assert set(refused) == {f"digits/{replaced}", f"digits/{broken.name}"}
    assert index(own)[f"digits/{replaced}"] == ("READY", refused[f"digits/{replaced}"])
    assert index(own)[f"digits/{broken.name}"] == ("UNAVAILABLE", refused[f"digits/{broken.name}"])
    assert "not a readable safetensors file" in own.log.read_text()

    shutil.copy(own_store / "digits" / str(other) / "model.safetensors", folder)
    broken.rmdir()
    assert change(own, "load").status_code == 200
    assert own.client.get("/models").json()["refused"] == {}
    assert_right(own.predict(BODY), probabilities(own_store / "digits" / str(other)))


def test_an_unloaded_model_finishes_what_it_has_and_stays_away_until_it_is_loaded(own: RunningServer) -> None:
    path = "/models/slow/predict"
    with ThreadPoolExecutor(1) as pool:
        in_flight = pool.submit(own.predict, ENDLESS | {"max_iterations": 20_000}, path)
        wait_until(lambda: rows(own, "active") == 1, 10, "it is in flight")
        assert change(own, "unload", "slow").status_code == 200
        assert own.predict(ENDLESS, path).status_code == 404
        assert index(own)["slow/"] == ("UNAVAILABLE", "unloaded on request")
        assert in_flight.result(timeout=60).json()["predictions"][0]["iterations"] == 20_000
    scans = own.log.read_text().count("model store rescanned")
    own.process.send_signal(signal.SIGHUP)
    wait_until(lambda: own.log.read_text().count("model store rescanned") > scans, 10, "the store was scanned")
    assert own.predict(ENDLESS, path).status_code == 404

    os.kill(own.engine_pid(), signal.SIGKILL)
    wait_until(lambda: own.metric("jfb_engine_restarts_total") == 1, 10, "the engine is missed")
    own.wait_until_ready()
    assert own.predict(ENDLESS, path).status_code == 404
    assert change(own, "load", "slow").status_code == 200
    assert own.predict(ENDLESS | {"max_iterations": 3}, path).status_code == 200


def move(own_store: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "app", "alias", *map(str, arguments), "--model-store", str(own_store)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_an_alias_is_moved_to_another_version_and_back(own: RunningServer, own_store: Path) -> None:
    older, newer = versions(own)[-2:]
    rows = {version: probabilities(own_store / "digits" / str(version)) for version in (older, newer)}
    path = "/models/digits/versions/stable"
    assert own.predict(BODY, f"{path}/predict").status_code == 404
    before = "none"
    for version in (older, newer, older):
        done = move(own_store, "digits", "stable", version)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"digits: stable is version {version}{'' if before == 'none' else f' (before: {before})'}\n"
        own.process.send_signal(signal.SIGHUP)
        wait_until(lambda: own.client.get("/models/digits").json()["aliases"] == {"stable": version}, 30, "the store was scanned")  # noqa: B023
        answer = own.predict(BODY, f"{path}/predict")
        assert answer.json()["version"] == version
        assert_right(answer, rows[version])
        tensor = {"name": "inputs", "shape": list(INPUTS.shape), "datatype": "FP32", "data": INPUTS.tolist()}
        assert own.client.post(f"/v2{path}/infer", json={"inputs": [tensor]}).json()["model_version"] == str(version)
        assert own.client.get(f"/v2{path}/ready").status_code == 200
        before = version
    (listed,) = [one for one in own.client.get("/models").json()["models"] if one["name"] == "digits"]
    assert listed["aliases"] == {"stable": older}

    error = own.predict(BODY, "/models/digits/versions/stabel/predict")
    rejected(error, 404, "model digits has no alias 'stabel'", f"{newer}; aliases: stable; did you mean stable?")
    rejected(
        own.predict(BODY, "/models/digits/versions/v1/predict"), 422, "version: must be a positive integer or an alias", '"v1"'
    )
    publish(own_store, 31)
    shutil.rmtree(own_store / "digits" / str(older))
    assert change(own, "load").status_code == 200
    rejected(own.predict(BODY, f"{path}/predict"), 404, f"model digits has no version {older}, which is stable")
    removed = move(own_store, "digits", "stable", "--remove")
    assert (removed.returncode, removed.stdout) == (0, f"digits: stable is removed (before: {older})\n")
    assert change(own, "load").status_code == 200
    assert own.client.get("/models/digits").json()["aliases"] == {}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("digits", "stable", "999"), "version: must be one of "),
        (("digits", "v3", "1"), "alias: must be a letter and up to 127"),
        (("digit", "stable", "1"), "(got 'digit'; did you mean 'digits'?) in"),
        (("../digits", "stable", "1"), "must be one of digits"),
        (("digits", "stable", "newest"), "'version'"),
        (("digits", "stable"), "'version': must be given, or --remove"),
        (("digits", "stable", "1", "--remove"), "'version': must be left out with --remove"),
        (("digits", "stable", "--remove"), "alias: must be one of none (got 'stable')"),
    ],
)
def test_an_alias_that_cannot_be_is_refused(
    own_store: Path, arguments: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        alias.program(args=[*arguments, "--model-store", str(own_store)])
    assert ended.value.code == 2
    assert error in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert read_aliases(own_store / "digits") == {}


def test_what_is_not_in_the_store_is_neither_loaded_nor_unloaded(own: RunningServer) -> None:
    for what in ("load", "unload"):
        answer = change(own, what, "none")
        assert answer.status_code == 400
        assert "no model 'none'" in answer.json()["error"]
    assert own.predict(BODY).status_code == 200


@pytest.mark.long
def test_memory_after_50_reloads_is_that_after_5(own: RunningServer, own_store: Path) -> None:
    replaced = own.log.read_text().count("replaced in the store")

    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])

    def reload() -> None:
        for version in versions(own)[-2:]:
            os.utime(own_store / "digits" / str(version) / "model.safetensors")
        assert change(own, "load").status_code == 200
        assert own.predict(BODY).status_code == 200

    pids = own.engine_pid(), own.worker_pid(), own.process.pid
    for _ in range(5):
        reload()
    after_5 = [resident(pid) for pid in pids]
    for _ in range(45):
        reload()
    after_50 = [resident(pid) for pid in pids]
    assert own.log.read_text().count("replaced in the store") == replaced + 100
    for before, after in zip(after_5, after_50, strict=True):
        assert after < 1.05 * before
