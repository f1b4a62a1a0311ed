"""Metrics: what an HTTP worker counts for Prometheus."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.registry import Collector

RESERVED_BYTES = 2**16
MAX_ENTRY_OVERHEAD_BYTES = 32  # of a value in a file, next to its key

log = structlog.get_logger(__name__)

LABELS = ["model", "version"]
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PHASES = {
    "queue": "Time that a request waited for its first slot.",
    "inject": "Time that the injection of a request's first rows took, with the other rows that were admitted with them.",
    "iterate": "Time from a request's first iteration to its last.",
    "readout": "Time that the readout of a request's last rows took, with the other rows that ended with them.",
}
"""The parts of a request's time in the engine; ``Timings.phases`` has their start and end."""


class ReservedFile(MmapedDict):
    """What a worker counts, in a file that the other workers read; it has its space on the disk before it is mapped.

    To write into a hole of a mapped file ends the process with SIGBUS when the disk is full. Values that have no space are
    counted in the worker only, whose own memory has them too.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            with Path(filename).open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)
        except OSError as error:
            log.error("metrics not shared", file=filename, error=str(error))
            Path(filename).unlink(missing_ok=True)
            memory = os.memfd_create("metrics")
            os.truncate(memory, RESERVED_BYTES)
            filename = f"/proc/self/fd/{memory}"
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        capacity = self._capacity
        while self._used + len(key.encode()) + MAX_ENTRY_OVERHEAD_BYTES > capacity:  # it is about to be doubled
            capacity *= 2
        if capacity > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def read_value(self, key: str) -> tuple[float, float]:
        try:
            value: tuple[float, float] = super().read_value(key)  # type: ignore[no-untyped-call]
        except OSError:
            return 0.0, 0.0
        return value

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        with suppress(OSError):
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]


values.MmapedDict = ReservedFile  # type: ignore[attr-defined]  # there is no other way; a test fails if it moves


class RowHistogram:
    """A histogram that counts many values at once; ``bounds`` are upper bounds of the buckets, without infinity."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self.name, self.documentation = name, documentation
        self.bounds = [float(bound) for bound in bounds]
        self.buckets = cache(Counter(f"{name}_bucket", "", [*LABELS, "bucket"], registry=registry).labels)
        """By model, version and index of the bucket (``bisect_left(bounds, value)``); each counts its own values only."""
        self.sums = cache(Counter(f"{name}_sum", "", LABELS, registry=registry).labels)


class Metrics:
    """Metrics as cached functions from label values to a child, which the client library would look up under a lock."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def seconds(name: str, meaning: str, labels: list[str]) -> Callable[..., Histogram]:
            return cache(Histogram(name, meaning, labels, buckets=SECONDS, registry=registry).labels)

        answered = ["model", "version", "method", "route", "status"]
        self.requests = cache(Counter("jfb_http_requests", "Requests answered.", answered, registry=registry).labels)
        meaning = "Time from the first byte of a request to the last of its response."
        self.request_seconds = seconds("jfb_http_request_seconds", meaning, ["model", "route"])
        self.phase_seconds = {phase: seconds(f"jfb_{phase}_seconds", meaning, LABELS) for phase, meaning in PHASES.items()}
        self.rows = cache(Counter("jfb_rows", "Rows answered, by status.", [*LABELS, "status"], registry=registry).labels)
        powers, tens = [2.0**power for power in range(11)], [10.0**power for power in range(-8, 3)]
        self.row_iterations = RowHistogram("jfb_row_iterations", "Iterations of a row.", powers, registry)
        self.row_residual = RowHistogram("jfb_row_residual", "Residual of a row's last iteration.", tens, registry)


class RowHistograms(Collector):
    """What a registry, or the collector that adds up those of all HTTP workers, has counted; histograms in Prometheus's form."""

    def __init__(self, source: Collector, histograms: Sequence[RowHistogram]) -> None:
        self._source = source
        self._histograms = histograms

    def collect(self) -> Iterator[Metric]:
        families = {family.name: family for family in self._source.collect()}
        for histogram in self._histograms:
            sums, buckets = families.pop(f"{histogram.name}_sum", None), families.pop(f"{histogram.name}_bucket", None)
            if sums is not None and buckets is not None:
                yield _histogram_family(histogram, buckets, sums)
        yield from families.values()


def _histogram_family(histogram: RowHistogram, buckets: Metric, sums: Metric) -> HistogramMetricFamily:
    counts: defaultdict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0] * (len(histogram.bounds) + 1))
    for sample in buckets.samples:
        if sample.name.endswith("_total"):
            counts[sample.labels["model"], sample.labels["version"]][int(sample.labels["bucket"])] += sample.value
    family = HistogramMetricFamily(histogram.name, histogram.documentation, labels=LABELS)
    for sample in sums.samples:
        if sample.name.endswith("_total"):
            key = sample.labels["model"], sample.labels["version"]
            add_histogram(family, key, histogram.bounds, counts[key], sample.value)
    return family


def add_histogram(
    family: HistogramMetricFamily, labels: Sequence[str], bounds: Sequence[float], counts: Sequence[float], total: float
) -> None:
    """Add one histogram: the values' ``counts`` per bucket, one more than upper ``bounds``, and their sum ``total``."""
    ends = [*map(str, bounds), "+Inf"]
    family.add_metric(list(labels), list(zip(ends, map(float, accumulate(counts)), strict=True)), total)
