"""What the server lets an operator see: histograms, traces, and the trace id in the log."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.engine_client.messages import Timings
from app.observability.metrics import AllWorkers, Metrics
from app.observability.request_log import MAX_UNLOGGED
from tests.app.running import RunningServer, running_server, wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


def test_a_histogram_counts_values_at_their_bounds_between_them_and_beyond() -> None:
    counted, registry = CollectorRegistry(), CollectorRegistry()
    metrics = Metrics(counted)
    registry.register(AllWorkers(counted, metrics))
    metrics.row_iterations.observe(("m", "1"), [1, 2, 3, 4, 5])
    metrics.row_iterations.observe(("m", "1"), [100, float("nan"), float("inf")])
    metrics.flush()
    metrics.row_iterations.observe(("m", "1"), [0.5])
    metrics.row_iterations.observe(("all rows diverged", "1"), [float("nan")])
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    family = families["jfb_row_iterations"]
    samples = [sample for sample in family.samples if sample.labels["model"] == "m"]
    values = {sample.name.removeprefix("jfb_row_iterations_") + sample.labels.get("le", ""): sample.value for sample in samples}
    assert {sample.value for sample in family.samples if sample.labels["model"] != "m"} == {0}
    assert values == {
        **{"bucket1.0": 2, "bucket2.0": 3, "bucket4.0": 5, "bucket8.0": 6, "bucket16.0": 6, "bucket32.0": 6, "bucket64.0": 6},
        **{"bucket128.0": 7, "bucket256.0": 7, "bucket512.0": 7, "bucket1024.0": 7, "bucket+Inf": 7, "count": 7, "sum": 115.5},
    }


def test_metrics_of_several_workers_have_their_space_on_the_disk_before_they_are_mapped(tmp_path: Path) -> None:
    """To write into a hole of a mapped file ends the process with SIGBUS when the disk is full."""
    program = """
import os, sys
from app.observability import metrics
from prometheus_client import CollectorRegistry, Counter
counter = Counter("rows", "Some.", ["model"], registry=CollectorRegistry())
if sys.argv[1] == "full later":
    counter.labels("first").inc()
if sys.argv[1] != "empty":
    def full(*_): raise OSError(28, "No space left on device")
    metrics.os.posix_fallocate = full
for model in range(1000):
    counter.labels(f"{model}").inc()
print(sum(counter.labels(f"{model}")._value.get() for model in range(1000)))
"""
    for disk in ("empty", "full later", "full"):
        folder = tmp_path / disk
        folder.mkdir()
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
        command = [sys.executable, "-c", program, disk]
        ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
        assert ended.stdout.split()[-1] == "1000.0", "the worker counts on in its own memory"
        files = list(folder.glob("counter_*.db"))
        assert len(files) == (disk != "full")
        for file in files:
            assert file.stat().st_blocks * 512 >= file.stat().st_size, "no part of it is a hole"
            assert file.stat().st_size == (2**17 if disk == "empty" else 2**16)


def test_phases_lie_one_behind_the_other_and_those_that_did_not_happen_are_left_out() -> None:
    assert Timings(1, 2, 3, 4, 5).phases() == {"queue": (1, 2), "inject": (2, 3), "iterate": (3, 4), "readout": (4, 5)}
    assert Timings(1).phases() == {}


def test_every_request_and_every_row_is_in_the_histograms(server: RunningServer, digits: NDArray[np.float64]) -> None:
    model = {"model": "digits", "version": "1"}
    path = "/models/digits/versions/1/predict"

    def counts() -> dict[str, float]:
        names = [f"jfb_{phase}_seconds_count" for phase in ("queue", "inject", "iterate", "readout")]
        names += ["jfb_row_iterations_count", "jfb_row_iterations_sum", "jfb_row_residual_count", "jfb_engine_batch_rows_sum"]
        found = {name: server.metric(name, **model) for name in names}
        found["requests"] = server.metric(
            "jfb_http_request_seconds_count", model="digits", route="/models/{name}/versions/{version}/predict"
        )
        return found | {
            status: server.metric("jfb_rows_total", status=status, **model) for status in ("converged", "max_iterations")
        }

    before = counts()
    caps = [60, 60, 60, 60, 60, 60, 1, 1]
    rows = server.predict({"inputs": digits.tolist(), "tolerance": 1e-5, "max_iterations": caps}, path).json()["predictions"]
    more = {name: after - before[name] for name, after in counts().items()}
    iterations = sum(row["iterations"] for row in rows)
    assert more == {
        **dict.fromkeys(("jfb_queue_seconds_count", "jfb_inject_seconds_count", "jfb_iterate_seconds_count"), 1),
        "jfb_readout_seconds_count": 1,
        "jfb_row_iterations_count": 8,
        "jfb_row_iterations_sum": iterations,
        "jfb_row_residual_count": 8,
        "jfb_engine_batch_rows_sum": iterations,
        "requests": 1,
        "converged": sum(row["status"] == "converged" for row in rows),
        "max_iterations": sum(row["status"] == "max_iterations" for row in rows),
    }
    assert more["max_iterations"] >= 2
    assert server.metric("jfb_engine_versions", model="digits") == 2


def test_buckets_only_grow(server: RunningServer) -> None:
    text = server.client.get("/metrics").text
    histograms = [family for family in text_string_to_metric_families(text) if family.type == "histogram"]
    assert len(histograms) >= 8
    for family in histograms:
        series: dict[str, list[tuple[float, float]]] = {}
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                labels = str({name: value for name, value in sample.labels.items() if name != "le"})
                series.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        for buckets in series.values():
            assert all(one < other for (one, _), (other, _) in pairwise(buckets))
            assert all(one <= other for (_, one), (_, other) in pairwise(buckets))


@pytest.mark.parametrize(
    ("given", "logged"),
    [(PARENT["traceparent"], TRACE), ("00-nonsense", None), (f"00-{'0' * 32}-b7ad6b7169203331-01", None)],
)
def test_the_log_has_the_trace_id_that_a_client_sent(server: RunningServer, given: str, logged: str | None) -> None:
    name = f"traced-{hash(given)}"
    server.client.get("/models", headers={"traceparent": given, "x-request-id": name})
    wait_until(lambda: name in server.log.read_text(), 5, "the line is in the log")
    (line,) = [line for line in server.log.read_text().splitlines() if name in line]
    assert json.loads(line).get("trace_id") == logged


def test_a_request_sent_behind_another_one_is_not_logged_with_its_trace_id(server: RunningServer) -> None:
    head = "GET /models HTTP/1.1\r\nhost: localhost\r\nx-request-id: pipelined-{}\r\n{}\r\n"
    traced = f"traceparent: {PARENT['traceparent']}\r\n"
    with socket.create_connection((server.client.base_url.host, server.client.base_url.port)) as connection:
        connection.sendall((head.format(1, traced) + head.format(2, "connection: close\r\n")).encode())
        while connection.recv(65536):
            pass
    wait_until(lambda: "pipelined-2" in server.log.read_text(), 5, "the line is in the log")
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if "pipelined-" in line]
    assert [(line["request_id"], line.get("trace_id")) for line in lines] == [("pipelined-1", TRACE), ("pipelined-2", None)]


def test_requests_that_are_logged_together_keep_their_own_trace_ids_and_times(server: RunningServer) -> None:
    began = datetime.now(UTC)
    for number in range(3 * MAX_UNLOGGED):
        headers = {"x-request-id": f"together-{number}-"} | (PARENT if number % 2 else {})
        server.client.get("/models", headers=headers)
    last = f"together-{3 * MAX_UNLOGGED - 1}-"
    wait_until(lambda: last in server.log.read_text(), 5, "the lines are in the log")
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if "together-" in line]
    assert [line["request_id"] for line in lines] == [f"together-{number}-" for number in range(3 * MAX_UNLOGGED)]
    assert [line.get("trace_id") for line in lines] == [None, TRACE] * (3 * MAX_UNLOGGED // 2)
    times = [datetime.fromisoformat(line["timestamp"]) for line in lines]
    assert [began, *times] == sorted([began, *times])
    assert len(set(times)) > MAX_UNLOGGED, "when requests were answered, not when that was written"


class Collector(BaseHTTPRequestHandler):
    """An OpenTelemetry collector that keeps what it is sent."""

    spans: list[Span]
    services: list[str]

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in request.resource_spans:
            self.services += [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            for scope in resource.scope_spans:
                self.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[type[Collector], str]]:
    """What arrived, and the address where it does."""

    class Own(Collector):
        spans: list[Span] = []  # noqa: RUF012
        services: list[str] = []  # noqa: RUF012

    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        yield Own, f"http://127.0.0.1:{receiver.server_port}"
        receiver.shutdown()
        thread.join()


def test_a_request_is_a_trace_with_the_phases_of_the_engine_below_it(
    store: Path, tmp_path: Path, collector: tuple[type[Collector], str]
) -> None:
    arrived, endpoint = collector
    with running_server(store, tmp_path / "log", otlp_endpoint=endpoint) as server:
        server.wait_until_ready()
        row = {"inputs": [[0, 1, 2, 3]], "max_iterations": 9}
        headers = PARENT | {"x-request-id": "traced"}
        answer = server.client.post("/models/slow/predict", json=row, headers=headers)
        assert answer.status_code == 200
        residual = answer.json()["predictions"][0]["residual"]
        server.client.get("/models/none", headers={"x-request-id": "without-parent"})
    by_name = {span.name: span for span in arrived.spans if span.trace_id.hex() == TRACE}
    top = by_name.pop("POST /models/{name}/predict")
    assert top.parent_span_id.hex() == "b7ad6b7169203331"
    assert sorted(by_name) == ["inject", "iterate", "queue", "readout"]
    in_order = [by_name[name] for name in ("queue", "inject", "iterate", "readout")]
    assert all(span.parent_span_id == top.span_id for span in in_order)
    for one, other in pairwise(in_order):
        assert one.start_time_unix_nano <= one.end_time_unix_nano <= other.start_time_unix_nano + 1000
    events = [{a.key: a.value for a in event.attributes} for event in by_name["iterate"].events]
    assert [event["jfb.iteration"].int_value for event in events] == list(range(1, 10))
    assert [event["jfb.rows"].int_value for event in events] == [1] * 9
    assert events[-1]["jfb.residual"].double_value == pytest.approx(residual)
    assert not any(span.events for span in (top, *in_order) if span.name != "iterate")
    attributes = {a.key: a.value.int_value or a.value.string_value for a in top.attributes}
    assert {name: attributes[name] for name in ("http.response.status_code", "jfb.model", "jfb.rows", "jfb.request_id")} == {
        "http.response.status_code": 200,
        "jfb.model": "slow",
        "jfb.rows": 1,
        "jfb.request_id": "traced",
    }
    (other,) = [span for span in arrived.spans if span.name == "GET /models/{name}"]
    assert not other.parent_span_id
    assert other.trace_id.hex() in (tmp_path / "log").read_text()
    assert set(arrived.services) == {"jfb"}
