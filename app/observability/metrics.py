"""Measures: what the HTTP process counts for Prometheus."""

from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from app.engine_client.catalogue import Model
from app.engine_client.client import Computed
from app.engine_client.messages import Moments
from app.observability.histogram import LABELS, RowHistogram

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ITERATIONS = tuple(2**power for power in range(11))
RESIDUALS = tuple(10.0**power for power in range(-8, 3))

PHASES = {
    "queue": ("submitted", "admitted"),
    "inject": ("admitted", "injected"),
    "iterate": ("injected", "ended"),
    "readout": ("ended", "read_out"),
}
"""The parts of a request's time in the engine, each from one of its moments to another."""


def phases(moments: Moments) -> dict[str, tuple[float, float]]:
    """Begin and end of each phase that a request went through, in seconds of ``time.monotonic()``."""
    found = {}
    for phase, (first, last) in PHASES.items():
        begin, end = getattr(moments, first), getattr(moments, last)
        if begin is not None and end is not None:
            found[phase] = (begin, end)
    return found


class Measures:
    """Counters and histograms of requests and rows, in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "jfb_http_requests", "Requests answered.", ["model", "method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "jfb_http_request_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ["model", "route"],
            buckets=SECONDS,
            registry=registry,
        )
        meanings = {
            "queue": "Time that a request waited for its first slot.",
            "inject": "Time that the injection of a request's first rows took, with those that joined beside them.",
            "iterate": "Time from a request's first iteration to its last.",
            "readout": "Time that the readout of a request's last rows took, with those that ended beside them.",
        }
        self._phases = {
            phase: Histogram(f"jfb_{phase}_seconds", meaning, LABELS, buckets=SECONDS, registry=registry)
            for phase, meaning in meanings.items()
        }
        self._rows = Counter("jfb_rows", "Rows answered, by how they ended.", [*LABELS, "status"], registry=registry)
        self._iterations = RowHistogram("jfb_row_iterations", "Iterations of a row.", ITERATIONS, registry)
        self._residuals = RowHistogram("jfb_row_residual", "Residual of a row's last iteration.", RESIDUALS, registry)
        self._of = cache(_labelled)

    def count_request(self, model: str, method: str, route: str, status: str, seconds: float) -> None:
        """Count an answered request; ``model`` is empty where none was asked."""
        self._of(self._requests, model, method, route, status).inc()
        self._of(self._seconds, model, route).observe(seconds)

    def count_rows(self, model: Model, computed: Computed) -> None:
        """Count what the engine made of a request."""
        labels = model.name, str(model.version)
        for phase, (begin, end) in phases(computed.moments).items():
            self._of(self._phases[phase], *labels).observe(end - begin)
        for status in set(computed.status):
            self._of(self._rows, *labels, status).inc(computed.status.count(status))
        self._iterations.observe(labels, computed.iterations)
        self._residuals.observe(labels, computed.residual)


def _labelled(metric: Counter | Histogram, *labels: str) -> Any:
    """One of a metric's children. The client looks for it under a lock each time, so it is looked for once."""
    return metric.labels(*labels)
