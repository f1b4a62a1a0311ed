"""The page of a run of ``benchmarks/gpu.sh``: its tables in Markdown, and the aims that they meet or miss.

python -m benchmarks.gpu_report OUT > benchmarks/results/gpu.md
"""

import csv
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

Row = Mapping[str, str]

TITLES = {
    "batching": "Iteration-level batching",
    "one_client": "One client",
    "serving": "Served requests",
    "deterministic": "Deterministic responses",
    "training": "Training steps",
}
"""Of the tables, by file."""
STEPS = ("steps", "steps_compiled")
"""Files of ``benchmarks.gpu_steps``."""
CHECKS = ("check", "engine", "deterministic")
"""Parts whose last line says how many comparisons are within their limits."""


class Aim(NamedTuple):
    """A ratio, in one column of one table, that was aimed at."""

    table: str
    column: str
    bound: float
    at_least: bool
    where: Mapping[str, str] = {}
    """Values of other columns."""


AIMS = (
    Aim("batching", "of bound", 0.85, at_least=True),
    Aim("batching", "of lockstep", 1.8, at_least=True),
    Aim("one_client", "of replay", 1.3, at_least=False),
    Aim("training", "of authors' program", 0.5, at_least=False, where={"method": "jfb"}),
)


def report(out: Path) -> Iterator[str]:
    """Yield the blocks of the page, of whatever the run has left in its folder."""
    tables = {path.stem: _read(path) for path in sorted(out.glob("*.csv"))}
    machine = (out / "machine.txt").read_text().strip() if (out / "machine.txt").exists() else "unknown machine"
    yield "# Measurements on a GPU"
    yield f"`benchmarks/gpu.sh` on {machine}, {time.strftime('%Y-%m-%d')}."
    if checked := [line for part in CHECKS for line in _checked(out / f"{part}.txt")]:
        yield "## Correctness"
        yield "\n".join(f"- {line}" for line in checked)
    if aims := [line for aim in AIMS for line in _compared(aim, tables.get(aim.table, []))]:
        yield "## Aims"
        yield markdown(aims)
    for name in STEPS:
        if rows := tables.pop(name, []):
            yield f"## Time of an iteration ({name.replace('_', ' ')})"
            yield "Microseconds per iteration of the batch, and the share of the measured matrix peak of the precision."
            yield markdown(_by_batch(rows))
    for name, rows in tables.items():
        if rows:
            yield f"## {TITLES.get(name, name.replace('_', ' '))}"
            yield markdown(rows)
    if trained := [*_trained(out)]:
        yield "## Training"
        yield markdown(trained)


def markdown(rows: Sequence[Row]) -> str:
    """Format rows of equal columns as a table; numbers have four digits."""
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([_number(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def _number(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return text if number.is_integer() and "." not in text else "" if number != number else f"{number:.4g}"


def _checked(path: Path) -> Iterator[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        if line.startswith(("wrong: ", "not checked: ")) or line.endswith("within limits"):
            yield f"{path.stem}: {line}"


def _compared(aim: Aim, rows: Sequence[Row]) -> Iterator[Row]:
    for row in rows:
        found = float(row.get(aim.column) or "nan")
        if all(row.get(key) == value for key, value in aim.where.items()) and found == found:
            met = found >= aim.bound if aim.at_least else found <= aim.bound
            yield {
                "table": aim.table,
                "row": ", ".join([*row.values()][: 1 + len(aim.where)]),
                "aim": f"{aim.column}: {'at least' if aim.at_least else 'at most'} {aim.bound:g}",
                "found": f"{found:.2f}",
                "": "met" if met else "**missed**",
            }


def _by_batch(rows: Sequence[Row]) -> list[Row]:
    """One row per batch size, and one column per precision and launch mode."""
    cells: dict[str, dict[str, str]] = {}
    columns = dict.fromkeys(f"{row['precision']}, {row['mode']}" for row in rows)
    for row in rows:
        if row["microseconds"] == "nan":
            cell = row["note"] or "-"
        else:
            cell = f"{float(row['microseconds']):.1f} ({float(row['of_peak']):.1%})"
        cells.setdefault(row["batch"], {})[f"{row['precision']}, {row['mode']}"] = cell
    return [{"batch": batch} | {column: of_batch.get(column, "") for column in columns} for batch, of_batch in cells.items()]


def _trained(out: Path) -> Iterator[Row]:
    for metrics in sorted(out.glob("store/*/*/metrics.json")):
        found, history = json.loads(metrics.read_text()), _read(metrics.with_name("history.csv"))
        yield {
            "recipe": metrics.parents[1].name,
            "epochs": str(len(history)),
            "test accuracy": f"{found['accuracy']:.2%}",
            "iterations": f"{found['iterations']:.1f}",
            "s per epoch": f"{found['seconds'] / len(history):.3g}",
            "s": f"{found['seconds']:.0f}",
        }


def main(out: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="OUT of benchmarks/gpu.sh.")]) -> None:
    """Print the page."""
    print("\n\n".join(report(out)))


if __name__ == "__main__":
    typer.run(main)
