"""Medians, the table, and the targets."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.serving.load import Outcome
from benchmarks.serving.requests import LOOSE, STRICT
from benchmarks.serving.rows import FASTAPI, LABEL, LITSERVE, ONNX, ONNX_ON_BOTH, OURS, OURS_ON_BOTH

Figure = Callable[[Outcome], float]

FIGURES: dict[str, Figure] = {
    "requests/s": lambda outcome: outcome.answered / outcome.seconds,
    "loose p50, ms": lambda outcome: outcome.percentile(LOOSE, 0.5),
    "loose p99": lambda outcome: outcome.percentile(LOOSE, 0.99),
    "strict p50": lambda outcome: outcome.percentile(STRICT, 0.5),
    "strict p99": lambda outcome: outcome.percentile(STRICT, 0.99),
    "iterations": lambda outcome: statistics.fmean(outcome.iterations) if outcome.iterations else float("nan"),
}

THROUGHPUT = "requests/s"
LATENCY = "loose p50, ms"
TARGETS = (
    ("64 clients", THROUGHPUT, OURS, ONNX, 1.3),
    ("64 clients", THROUGHPUT, LABEL, ONNX, 2.0),
    ("64 clients", THROUGHPUT, OURS, LITSERVE, 3.0),
    ("64 clients", LATENCY, LITSERVE, OURS, 5.0),
    ("64 clients", THROUGHPUT, OURS, FASTAPI, 4.0),
    ("1 client", LATENCY, ONNX, OURS, 0.8),
    ("1 client", LATENCY, FASTAPI, OURS, 3.0),
    ("64 clients", THROUGHPUT, OURS_ON_BOTH, ONNX_ON_BOTH, 1.0),
)
"""Load, figure, two rows, and the target: at least this ratio of the first row's figure to the second's."""


@dataclass
class Results:
    """All measurements."""

    outcomes: dict[tuple[str, str], dict[int, Outcome]] = field(default_factory=dict)
    """By load and row, and then by round."""
    memory: dict[str, list[float]] = field(default_factory=dict)
    """MiB of a row's processes after its last load, by round."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Rows that were left out, and why."""
    offline: dict[str, list[float]] = field(default_factory=dict)
    """Samples per second, by contender."""

    def add(self, load: str, row: str, number: int, outcome: Outcome) -> None:
        self.outcomes.setdefault((load, row), {})[number] = outcome

    def markdown(self, title: str) -> str:
        """Return all tables."""
        parts = [title, self._table(), self._targets(), self._offline()]
        parts += [f"Left out: {row}: {reason.strip().splitlines()[-1]}" for row, reason in self.skipped.items()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _table(self) -> str:
        lines = [["load", "server", *FIGURES, "MiB", "wrong", "failed"]]
        loads = dict.fromkeys(load for load, _ in self.outcomes)
        for load in loads:
            for (one, row), rounds in self.outcomes.items():
                if one != load:
                    continue
                outcomes = list(rounds.values())
                figures = [_shown(statistics.median(figure(outcome) for outcome in outcomes)) for figure in FIGURES.values()]
                memory = f"{statistics.median(self.memory[row]):.0f}" if row in self.memory else ""
                wrong, failed = sum(outcome.wrong for outcome in outcomes), sum(outcome.failed for outcome in outcomes)
                lines.append([load, row, *figures, memory, str(wrong), str(failed)])
        return _as_markdown(lines)

    def _targets(self) -> str:
        lines = [["load", "figure", "", "measured", "target", ""]]
        for load, figure, more, less, target in TARGETS:
            both = self.outcomes.get((load, more), {}), self.outcomes.get((load, less), {})
            rounds = sorted(both[0].keys() & both[1].keys())
            if rounds:
                value = FIGURES[figure]
                ratio = statistics.median(value(both[0][number]) / value(both[1][number]) for number in rounds)
                met = "met" if ratio >= target else "**missed**"
                lines.append([load, figure, f"{more} / {less}", f"{ratio:.2f}", f"{target:g}", met])
        return _as_markdown(lines) if len(lines) > 1 else ""

    def _offline(self) -> str:
        if not self.offline:
            return ""
        lines = [["offline", "samples/s"]]
        lines += [[name, f"{statistics.median(found):.0f}"] for name, found in self.offline.items() if found]
        return _as_markdown(lines)


def _shown(value: float) -> str:
    return "" if value != value else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _as_markdown(lines: list[list[str]]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])
