"""Draw docs/architecture.png: the rooms of the three packages, and an arrow wherever one room imports another.

A room is a folder directly in a package, or a file there. The picture shows the import statements as they are, except arrows that
other arrows imply: if A imports B and C, and B imports C, the arrow from A to C is left out.

    python docs/draw_architecture.py
"""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated

import matplotlib as mpl
import typer

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"training": "#f2c14e", "app": "#8db8e8", "jfb": "#8fc79a"}
ENTRY_FILES = {"__init__", "__main__"}
"""Files that start a package or list its names; they are no rooms."""

Arrows = dict[str, set[str]]
"""Each room, with the rooms that it imports."""
Place = tuple[float, float]


def find_arrows(package: str) -> Arrows:
    """The rooms of a package, with the arrows between them."""
    rooms = {path.stem if path.suffix == ".py" else path.name for path in (ROOT / package).iterdir() if _is_room(path)}
    arrows: Arrows = {room: set() for room in sorted(rooms)}
    for path in sorted((ROOT / package).rglob("*.py")):
        room = path.relative_to(ROOT / package).with_suffix("").parts[0]
        if room in rooms:
            names = [name.split(".") for name in _imported_names(ast.parse(path.read_text()))]
            arrows[room] |= {name[1] for name in names if name[0] == package and name[1] in rooms and name[1] != room}
    return arrows


def _is_room(path: Path) -> bool:
    return (path.suffix == ".py" and path.stem not in ENTRY_FILES) or (path / "__init__.py").is_file()


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"{alias.name}." for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reachable(arrows: Arrows) -> Arrows:
    """Each room, with all rooms that it imports directly or through others; itself among them only if it is part of a circle."""
    found: Arrows = {}
    for room in arrows:
        todo, seen = [*arrows[room]], set[str]()
        while todo:
            other = todo.pop()
            if other not in seen:
                seen.add(other)
                todo += arrows[other]
        found[room] = seen
    return found


def merge_circles(arrows: Arrows) -> Arrows:
    """Rooms that import each other become one, so that the rest can be drawn from top to bottom."""
    below = reachable(arrows)
    name = {room: ", ".join(sorted({room, *(other for other in below[room] if room in below[other])})) for room in arrows}
    merged: Arrows = {name[room]: set() for room in arrows}
    for room, targets in arrows.items():
        merged[name[room]] |= {name[target] for target in targets} - {name[room]}
    return merged


def without_implied(arrows: Arrows) -> Arrows:
    """The arrows that no other arrows imply."""
    below = reachable(arrows)
    return {
        room: {target for target in targets if not any(target in below[other] for other in targets)}
        for room, targets in arrows.items()
    }


def layers(arrows: Arrows) -> dict[str, int]:
    """The layer of each room: above all rooms that it imports, and directly below one that imports it."""
    below = reachable(arrows)
    upwards = sorted(arrows, key=lambda room: len(below[room]))
    layer: dict[str, int] = {}
    for room in upwards:
        layer[room] = 1 + max((layer[target] for target in arrows[room]), default=-1)
    for room in reversed(upwards):
        if importers := [other for other in arrows if room in arrows[other]]:
            layer[room] = min(layer[other] for other in importers) - 1
    return layer


def layout(arrows: Arrows) -> tuple[dict[str, Place], list[list[Place]]]:
    """Places of the rooms, and the points through which each arrow goes.

    An arrow that passes a layer takes a place in it, as a room does, so that it crosses no room. The layers are sorted several
    times by the mean place of what each member is connected to (Sugiyama's method).
    """
    layer = layers(arrows)
    rows: list[list[str]] = [[room for room in arrows if layer[room] == k] for k in range(max(layer.values()) + 1)]
    ways = []
    for room, target in ((importer, imported) for importer in arrows for imported in sorted(arrows[importer])):
        bends = {k: f"{room} > {target} {k}" for k in range(layer[room] - 1, layer[target], -1)}
        for k, bend in bends.items():
            rows[k].append(bend)
        ways.append([room, *bends.values(), target])
    neighbours: dict[str, list[str]] = {node: [] for row in rows for node in row}
    for upper, lower in (pair for way in ways for pair in pairwise(way)):
        neighbours[upper].append(lower)
        neighbours[lower].append(upper)
    x = {node: 0.0 for row in rows for node in row}
    for turn in range(40):
        for row in rows if turn % 2 else rows[::-1]:
            wanted = {node: fmean(x[other] for other in neighbours[node] or [node]) for node in row}
            row.sort(key=wanted.__getitem__)
            x |= _apart(row, wanted)
    return (
        {room: (x[room], layer[room]) for room in arrows},
        [[(x[node], layer[way[0]] - k) for k, node in enumerate(way)] for way in ways],
    )


def _apart(row: list[str], wanted: dict[str, float]) -> dict[str, float]:
    """Places near the wanted ones, in the same order, that leave room for the names."""
    half = {node: 1.0 if ">" in node else len(node) / 2 + 2 for node in row}
    from_left, from_right = dict(wanted), dict(wanted)
    for one, following in pairwise(row):
        from_left[following] = max(wanted[following], from_left[one] + half[one] + half[following])
    for following, one in pairwise(row[::-1]):
        from_right[one] = min(wanted[one], from_right[following] - half[one] - half[following])
    return {node: (from_left[node] + from_right[node]) / 2 for node in row}


def draw(axes: Axes, package: str) -> None:
    """Draw the rooms of a package, each above those that it imports."""
    found = find_arrows(package)
    places, ways = layout(without_implied(merge_circles(found)))
    top = max(y for _, y in places.values())
    gap = 0.028 * (top + 1)
    for way in ways:
        start, *bends, end = way
        points = [(start[0], start[1] - gap), *bends, (end[0], end[1] + gap)]
        axes.plot(*zip(*points, strict=True), color="#666666", linewidth=1, zorder=1)
        axes.annotate(
            "", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": "#666666", "shrinkA": 0, "shrinkB": 0}
        )
    for room, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.4", "facecolor": COLOURS[package], "edgecolor": "white"}
        axes.text(x, y, room, ha="center", va="center", fontsize=10, zorder=3, bbox=box)
    left, *_, right = sorted(x for way in [*ways, [*places.values()]] for x, _ in way)
    axes.set(xlim=(left - 8, right + 8), ylim=(-0.5, top + 0.5))
    axes.set_title(f"{package}/: {len(found)} rooms, {sum(map(len, found.values()))} arrows", fontsize=13)
    axes.axis("off")


def main(out: Annotated[Path, typer.Option(help="File to write the picture to.")] = ROOT / "docs" / "architecture.png") -> None:
    """Draw the picture."""
    figure = plt.figure(figsize=(12, 12), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[7, 6], hspace=0.06)
    for package, cell in {"training": grid[0, 0], "app": grid[0, 1], "jfb": grid[1, :]}.items():
        draw(figure.add_subplot(cell), package)
    figure.suptitle("training imports jfb, and app imports jfb; training and app never import each other", fontsize=13)
    figure.savefig(out, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
