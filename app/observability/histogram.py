"""Histograms of many values at once: one request brings up to a thousand rows, and each of them counts."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import HistogramMetricFamily

LABELS = ["model", "version"]


class RowHistogram:
    """Counts values by model and version.

    Args:
        name: of the metric.
        meaning: in words.
        bounds: upper ends of the buckets, ascending; the last bucket, up to infinity, is added to them.
        registry: that shows it.
    """

    def __init__(self, name: str, meaning: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._bounds = list(bounds)
        self._of = cache(Histogram(name, meaning, LABELS, buckets=bounds, registry=registry).labels)

    def observe(self, labels: tuple[str, str], values: Sequence[float]) -> None:
        """Count values; those that are not finite are left out."""
        finite = [value for value in values if math.isfinite(value)]
        # Most requests have one row, for which NumPy would take ten times as long.
        places = [bisect_left(self._bounds, value) for value in finite]
        # What Histogram.observe does for one value; its public side has no way to do it for many at once.
        histogram = self._of(*labels)
        histogram._sum.inc(sum(finite))
        for place in set(places):
            histogram._buckets[place].inc(places.count(place))


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
