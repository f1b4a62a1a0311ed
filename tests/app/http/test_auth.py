"""API keys and what each allows, and other protection of the server."""

import signal
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from app.http.auth import ApiKeyError, ApiKeys, KeySet
from app.settings import Settings
from tests.app.running import RunningServer, rejected, running_server, wait_until

ROW = {"inputs": [[0, 1, 2, 3]]}
PATH = "/models/slow/predict"
LOAD = "/v2/repository/models/slow/load"


def bearing(key: str) -> dict[str, bytes]:
    return {"authorization": f"Bearer {key}".encode()}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("from-file\n\nalso-from-file\nschlüssel-鍵\n", "utf-8")
    return file


@pytest.fixture(scope="module")
def locked(store: Path, keys_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, str]]:
    """A server with API keys, a metrics port, one allowed origin and a body timeout of half a second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        metrics_port = probe.getsockname()[1]
    with running_server(
        store,
        tmp_path_factory.mktemp("locked") / "log",
        api_keys="first,second",
        api_keys_file=keys_file,
        admin_keys="boss",
        metrics_port=metrics_port,
        cors_origins="https://friend.example",
        body_timeout=0.5,
        log_format="console",
    ) as running:
        running.wait_until_ready()
        yield running, f"http://127.0.0.1:{metrics_port}"


@pytest.fixture(scope="module")
def gated(locked: tuple[RunningServer, str]) -> httpx.Client:
    return locked[0].client


@pytest.mark.parametrize("key", ["first", "second", "from-file", "also-from-file", "boss", "schlüssel-鍵"])
def test_every_key_gives_access_to_what_users_may_do(gated: httpx.Client, key: str) -> None:
    assert gated.post(PATH, json=ROW, headers=bearing(key)).status_code == 200
    assert gated.get("/models", headers=bearing(key)).status_code == 200
    assert gated.get("/v2/models/slow", headers=bearing(key)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearing("third"),
        bearing("firs"),
        {"authorization": b"Bearer"},
        {"authorization": b"first"},
        {"authorization": b"Basic first"},
        bearing("first,second"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", PATH),
        ("POST", "/predict"),
        ("GET", "/models"),
        ("GET", "/models/slow"),
        ("GET", "/v2"),
        ("GET", "/v2/models/slow"),
        ("POST", "/v2/models/slow/infer"),
        ("POST", "/v2/repository/index"),
        ("POST", LOAD),
    ],
)
def test_without_a_key_every_request_is_rejected(gated: httpx.Client, headers: dict[str, bytes], method: str, path: str) -> None:
    answer = gated.request(method, path, headers=headers)
    rejected(answer, 401, "authorization: ", "Bearer")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_users_may_not_load_or_unload_and_admins_may(gated: httpx.Client) -> None:
    for path in (LOAD, LOAD.replace("load", "unload")):
        rejected(gated.post(path, headers=bearing("first")), 403, "authorization: ", "admin key")
    assert gated.post(LOAD, headers=bearing("boss")).json() == [{"name": "slow", "version": "1", "state": "READY", "reason": ""}]


def test_health_needs_no_key_and_the_pages_have_security_headers(gated: httpx.Client) -> None:
    assert gated.get("/v2/health/live").status_code == gated.get("/v2/health/ready").status_code == 200
    page = gated.get("/docs")
    assert page.status_code == 200
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


def test_metrics_and_health_live_on_their_own_port_and_metrics_there_only(locked: tuple[RunningServer, str]) -> None:
    server, url = locked
    assert httpx.get(f"{url}/v2/health/ready").json() == {"ready": True}
    assert 'jfb_engine_ready{engine="0"} 1.0' in httpx.get(f"{url}/metrics").text
    rejected(httpx.post(f"{url}{PATH}", json=ROW, headers=bearing("first")), 404)
    rejected(server.client.get("/metrics"), 404)


def test_only_configured_origins_may_send_requests_from_a_browser(gated: httpx.Client, client: httpx.Client) -> None:
    def preflight(sender: httpx.Client, origin: str) -> httpx.Response:
        headers = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        return sender.options("/predict", headers=headers)

    friend, stranger = "https://friend.example", "https://stranger.example"
    assert preflight(gated, friend).headers["access-control-allow-origin"] == friend
    assert "access-control-allow-origin" not in preflight(gated, stranger).headers
    answer = gated.get("/models", headers=bearing("first") | {"origin": friend.encode()})
    assert answer.headers["access-control-allow-origin"] == friend
    # Off unless it is set.
    assert "access-control-allow-origin" not in preflight(client, friend).headers
    assert "access-control-allow-origin" not in client.get("/models", headers={"origin": friend}).headers


def test_a_slow_body_is_408_and_its_connection_is_closed(locked: tuple[RunningServer, str]) -> None:
    url = httpx.URL(locked[0].url)
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer first\r\n"
        "content-type: application/json\r\ncontent-length: 99\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80), timeout=20) as sock:
        sock.sendall(head.encode() + b"{")
        received = b""
        while chunk := sock.recv(4096):
            received += chunk
            time.sleep(0.01)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"body: must arrive within 0.5 s (got 1 bytes)" in received


@pytest.mark.parametrize("begin", [b"", b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\n\r\n"], ids=["first", "second"])
def test_a_head_that_does_not_end_is_408_and_its_connection_is_closed(locked: tuple[RunningServer, str], begin: bytes) -> None:
    received = spoken(locked[0], begin + b"GET /models HTTP/1.1\r\nhost: t\r\n")
    assert b"HTTP/1.1 408 " in received
    assert b"head: must arrive within 0.5 s (got " in received
    assert received.count(b"HTTP/1.1 200 ") == (1 if begin else 0)


def test_a_head_without_end_is_431_before_its_time_is_over(locked: tuple[RunningServer, str]) -> None:
    received = spoken(locked[0], b"GET /models HTTP/1.1\r\n" + b"x-more: " + b"a" * 65_600)
    assert received.startswith(b"HTTP/1.1 431 ")


def test_the_rest_of_a_body_that_was_not_waited_for_is_not_taken_for_a_head(locked: tuple[RunningServer, str]) -> None:
    """A request that is refused by its head is answered while its body, of any size, is still on the way."""
    url = httpx.URL(locked[0].url)
    body = b"a" * 200_000
    head = f"POST {PATH} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer first\r\ncontent-type: text/plain\r\n"
    with socket.create_connection((url.host, url.port or 80), timeout=20) as sock:
        for _ in range(5):  # how the bytes are cut up on the way is not for a test to say
            sock.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode())
            assert status(sock) == 415
            sock.sendall(body)
            time.sleep(0.05)
            sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\n\r\n")
            assert status(sock) == 200


def status(sock: socket.socket) -> int:
    """Of the next answer, which is read whole."""
    answer = HTTPResponse(sock)
    answer.begin()
    answer.read()
    return answer.status


def test_a_connection_that_says_nothing_is_closed(locked: tuple[RunningServer, str]) -> None:
    assert spoken(locked[0], b"") == b""


def spoken(server: RunningServer, sent: bytes) -> bytes:
    """What a connection brings until the server closes it."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=20) as sock:
        sock.sendall(sent)
        received = b""
        while chunk := sock.recv(4096):
            received += chunk
    return received


def test_the_log_has_neither_keys_nor_json_when_it_is_for_people(locked: tuple[RunningServer, str]) -> None:
    server = locked[0]
    server.client.get("/models", headers=bearing("first") | {"x-request-id": b"in-words"})
    wait_until(lambda: "in-words" in server.log.read_text(), 5, "the line is in the log")
    (line,) = [line for line in server.log.read_text().splitlines() if "in-words" in line]
    assert not line.startswith("{")
    assert "model loaded" in server.log.read_text()  # which the engine says
    assert "\n{" not in server.log.read_text()
    assert "boss" not in server.log.read_text()
    assert "also-from-file" not in server.log.read_text()


def test_keys_are_read_again_on_sighup_and_a_broken_file_changes_nothing(
    locked: tuple[RunningServer, str], keys_file: Path
) -> None:
    server, before = locked[0], keys_file.read_text()

    def status(key: str) -> int:
        return server.client.get("/models", headers=bearing(key)).status_code

    try:
        keys_file.write_text("brand-new")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: status("brand-new") == 200, 10, "the new key opens")
        assert (status("from-file"), status("first"), status("boss")) == (401, 200, 200)
        keys_file.unlink()
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "previous keys kept" in server.log.read_text(), 10, "the key file is read again")
        assert status("brand-new") == 200
    finally:
        keys_file.write_text(before)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: status("from-file") == 200, 10, "the old keys are back")


def test_without_keys_every_client_may_predict_and_load(client: httpx.Client) -> None:
    assert client.post(PATH, json=ROW, headers=bearing("whatever")).status_code == 200
    assert client.post(LOAD).status_code == 200


def test_a_keyring_holds_what_stands_in_its_setting_and_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("c\n d \n", "utf-8")
    keys = KeySet("api_keys", SecretStr("a, b"), file)
    assert [key for key in "abcde" if key.encode() in keys] == list("abcd")
    assert b"" not in keys
    assert b"" not in KeySet("api_keys", None, None)


def test_keys_that_are_wanted_but_not_there_are_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ApiKeyError, match=r"--admin-keys-file must be a readable file of API keys \(got .*nowhere"):
        ApiKeys(Settings(admin_keys_file=tmp_path / "nowhere"))
    with pytest.raises(ApiKeyError, match="--api-keys must hold at least one API key"):
        ApiKeys(Settings(api_keys=SecretStr(" , ")))


def test_keys_do_not_show_in_the_settings_text() -> None:
    assert "secret-key" not in repr(Settings(api_keys=SecretStr("secret-key")))
