"""Prometheus and the Grafana dashboard, as provisioned: every query must return data of a real server."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from tests.app.running import RunningServer, wait_until
from tests.ports import free_port

FOLDER = Path(__file__).resolve().parents[2] / "docker"
DASHBOARD = json.loads((FOLDER / "grafana" / "dashboards" / "jfb.json").read_text())
QUERIES = {f"{panel['title']}: {target['expr']}": target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}


@pytest.fixture(scope="module")
def names(digits_server: RunningServer) -> set[str]:
    """The names of all samples after one prediction."""
    digits_server.predict({"inputs": np.zeros((2, 1, 8, 8)).tolist()})
    families = text_string_to_metric_families(digits_server.client.get("/metrics").text)
    return {sample.name for family in families for sample in family.samples}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_the_server_has_the_metrics_of_the_dashboard(query: str, names: set[str]) -> None:
    queried = set(re.findall(r"\bjfb_\w+", query))
    assert queried
    assert queried <= names


def test_the_server_has_the_metrics_of_the_autoscalers(names: set[str]) -> None:
    files = [path.read_text() for path in (FOLDER / "kubernetes").iterdir()]
    queried = {name for text in files for name in re.findall(r"\bjfb_engine_\w+", text)}
    assert queried == {"jfb_engine_waiting_rows"}
    assert queried <= names


def test_panels_lie_side_by_side_and_name_the_provisioned_data_source() -> None:
    sources = yaml.safe_load((FOLDER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    assert [source["uid"] for source in sources["datasources"]] == ["prometheus"]
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"prometheus"}
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_mounted_file_is_there_and_every_image_has_an_exact_version() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (FOLDER / volume.split(":")[0]).exists(), (name, volume)
        if "build" not in service and not service["image"].startswith("jfb-"):
            assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), name


def test_prometheus_and_the_proxy_have_every_server_of_the_compose_file() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    servers = {name for name, service in services.items() if service["image"] == "jfb-server"}
    (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert set(job["dns_sd_configs"][0]["names"]) == servers
    assert set(services["proxy"]["environment"]["REPLICAS"].split()) == {f"{name}:8000" for name in servers}


@pytest.fixture(scope="module")
def prometheus(digits_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus with the provisioned configuration, except that it scrapes this server, every second."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    configuration = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    configuration["global"]["scrape_interval"] = "1s"
    (job,) = configuration["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [httpx.URL(digits_server.url).netloc.decode()]}]
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    options = ["--config.file=prometheus.yaml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options], cwd=folder, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=30) as client:
            wait_until(lambda: _answers(client), 30, "prometheus answers")
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_every_query_of_the_dashboard_returns_data(
    digits_server: RunningServer, prometheus: httpx.Client, digits: NDArray[np.float64]
) -> None:
    def run(query: str) -> list[dict[str, object]]:
        expression = query.replace("$__rate_interval", "10s").replace("$model", ".*")
        answer = prometheus.post("/query", data={"query": expression})
        assert answer.status_code == 200, (query, answer.text)
        return list(answer.json()["data"]["result"])

    end = time.monotonic() + 60
    missing = set(QUERIES)
    while missing and time.monotonic() < end:
        assert digits_server.predict({"inputs": digits.tolist()}).status_code == 200
        time.sleep(0.2)
        values = {name: run(QUERIES[name]) for name in missing}
        missing = {name for name, found in values.items() if not found or any("NaN" in str(one["value"]) for one in found)}
    assert not missing
    (ready,) = run("sum(jfb_engine_ready)")
    assert ready["value"][1] == "1"  # type: ignore[index]


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/status/buildinfo").status_code == 200
    except httpx.TransportError:
        return False
