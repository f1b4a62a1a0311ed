"""Histograms of many values at once: one request brings up to a thousand rows, and each of them counts."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LABELS = ["model", "version"]


class RowHistogram(Collector):
    """Counts values by model and version.

    Args:
        name: of the metric.
        meaning: in words.
        bounds: upper ends of the buckets, ascending; the last bucket, up to infinity, is added to them.
    """

    def __init__(self, name: str, meaning: str, bounds: Sequence[float]) -> None:
        self._name, self._meaning = name, meaning
        self._bounds = list(bounds)
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._sums: dict[tuple[str, str], float] = {}

    def observe(self, labels: tuple[str, str], values: Sequence[float]) -> None:
        """Count values; those that are not finite are left out."""
        counts = self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
        finite = [value for value in values if math.isfinite(value)]
        for value in finite:  # most requests have one row, for which NumPy would take ten times as long
            counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + sum(finite)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=LABELS)
        for labels, counts in self._counts.items():
            add(family, labels, self._bounds, counts, self._sums[labels])
        yield family


def add(
    family: HistogramMetricFamily, labels: Sequence[str], bounds: Sequence[float], counts: Sequence[int], total: float
) -> None:
    """Add one histogram to a family.

    Args:
        bounds: upper ends of the buckets.
        counts: of the values in each bucket, one more than ``bounds``: the last goes up to infinity.
        total: sum of the values.
    """
    ends = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    family.add_metric(list(labels), list(zip(ends, map(float, accumulate(counts)), strict=True)), total)
