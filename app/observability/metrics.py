"""Metrics: what an HTTP worker counts for Prometheus."""

import os
from bisect import bisect_left
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import accumulate, chain
from math import isfinite
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, values
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.registry import Collector

from app.engine_client.messages import Result
from app.observability.record import RequestRecord

RESERVED_BYTES = 2**16
MAX_ENTRY_OVERHEAD_BYTES = 32  # of a value in a file, next to its key

log = structlog.get_logger(__name__)

LABELS = ["model", "version"]
BUCKET = "bucket"
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


class BatchedCounter:
    """A counter that ``flush`` writes."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._child = cache(Counter(name, documentation, labels, registry=registry).labels)
        self._unwritten: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, labels: tuple[str, ...], amount: float = 1.0) -> None:
        """Count, for values of the labels."""
        self._unwritten[labels] += amount

    def flush(self) -> None:
        """Write what has been counted to where the registry, and the other workers, find it."""
        for labels, amount in self._unwritten.items():
            self._child(*labels).inc(amount)
        self._unwritten.clear()


class BatchedHistogram:
    """A histogram that ``flush`` writes; ``bounds`` are upper bounds of the buckets, without infinity."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self.name, self.documentation, self.labels = name, documentation, labels
        self.bounds = [float(bound) for bound in bounds]
        self._buckets = BatchedCounter(f"{name}_bucket", "", [*labels, BUCKET], registry)  # by index, with its own values only
        self._sums = BatchedCounter(f"{name}_sum", "", labels, registry)
        self._unwritten: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)

    def observe(self, labels: tuple[str, ...], values: Iterable[float]) -> None:
        """Count values, except those that are not finite."""
        self._unwritten[labels] += values

    def flush(self) -> None:
        """Write what has been counted."""
        for labels, observed in self._unwritten.items():
            finite = [value for value in observed if isfinite(value)]
            for bucket, count in Counts(bisect_left(self.bounds, value) for value in finite).items():
                self._buckets.add((*labels, str(bucket)), count)
            self._sums.add(labels, sum(finite))
        self._unwritten.clear()
        self._buckets.flush()
        self._sums.flush()


class Metrics:
    """What is counted of requests, some at a time: to write each count by itself would take an eighth of a request's time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, meaning: str, bounds: Sequence[float], labels: Sequence[str] = LABELS) -> BatchedHistogram:
            return BatchedHistogram(name, meaning, labels, bounds, registry)

        answered = ["model", "version", "method", "route", "status"]
        self.requests = BatchedCounter("jfb_http_requests", "Requests answered.", answered, registry)
        meaning = "Time from the first byte of a request to the last of its response."
        self.request_seconds = histogram("jfb_http_request_seconds", meaning, SECONDS, ["model", "route"])
        self.phase_seconds = {phase: histogram(f"jfb_{phase}_seconds", meaning, SECONDS) for phase, meaning in PHASES.items()}
        self.rows = BatchedCounter("jfb_rows", "Rows answered, by status.", [*LABELS, "status"], registry)
        powers, tens = [2.0**power for power in range(11)], [10.0**power for power in range(-8, 3)]
        self.row_iterations = histogram("jfb_row_iterations", "Iterations of a row.", powers)
        self.row_residual = histogram("jfb_row_residual", "Residual of a row's last iteration.", tens)
        self.histograms = [self.request_seconds, *self.phase_seconds.values(), self.row_iterations, self.row_residual]

    def count(self, records: Iterable[RequestRecord]) -> None:
        """Count requests that have been answered, and what the engine returned for them; ``flush`` writes it."""
        results: defaultdict[tuple[str, ...], list[Result]] = defaultdict(list)
        for one in records:
            self.requests.add((one.model, one.version, one.method, one.route, str(one.status)))
            self.request_seconds.observe((one.model, one.route), [one.seconds])
            if one.result is not None:
                results[one.model, one.version].append(one.result)
        for labels, computed in results.items():
            for phase, (start, end) in chain.from_iterable(one.timings.phases().items() for one in computed):
                self.phase_seconds[phase].observe(labels, [end - start])
            for status, rows in Counts(chain.from_iterable(one.status for one in computed)).items():
                self.rows.add((*labels, status), rows)
            self.row_iterations.observe(labels, chain.from_iterable(one.iterations for one in computed))
            self.row_residual.observe(labels, chain.from_iterable(one.residual for one in computed))

    def flush(self) -> None:
        """Write what has been counted."""
        for counter in (self.requests, self.rows):
            counter.flush()
        for histogram in self.histograms:
            histogram.flush()


class AllWorkers(Collector):
    """What is counted here, or by all HTTP workers if ``source`` adds up theirs; histograms in Prometheus's form."""

    def __init__(self, source: Collector, metrics: Metrics) -> None:
        self._source = source
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        self._metrics.flush()
        families = {family.name: family for family in self._source.collect()}
        for histogram in self._metrics.histograms:
            sums, buckets = families.pop(f"{histogram.name}_sum", None), families.pop(f"{histogram.name}_bucket", None)
            if sums is not None and buckets is not None:
                yield _histogram_family(histogram, buckets, sums)
        yield from families.values()


def _histogram_family(histogram: BatchedHistogram, buckets: Metric, sums: Metric) -> HistogramMetricFamily:
    def key_of(labels: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(labels[name] for name in histogram.labels)

    counts: defaultdict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0] * (len(histogram.bounds) + 1))
    for sample in buckets.samples:
        if sample.name.endswith("_total"):
            counts[key_of(sample.labels)][int(sample.labels[BUCKET])] += sample.value
    family = HistogramMetricFamily(histogram.name, histogram.documentation, labels=histogram.labels)
    for sample in sums.samples:
        if sample.name.endswith("_total"):
            key = key_of(sample.labels)
            add_histogram(family, key, histogram.bounds, counts[key], sample.value)
    return family


def add_histogram(
    family: HistogramMetricFamily, labels: Sequence[str], bounds: Sequence[float], counts: Sequence[float], total: float
) -> None:
    """Add one histogram: the values' ``counts`` per bucket, one more than upper ``bounds``, and their sum ``total``."""
    ends = [*map(str, bounds), "+Inf"]
    family.add_metric(list(labels), list(zip(ends, map(float, accumulate(counts)), strict=True)), total)
