"""Draw docs/architecture.png: the rooms of the three packages, and an arrow wherever one imports another.

    python docs/draw_architecture.py [--check]

A room is a folder directly below a package, or a file there. The picture is made from the import statements as they stand; with
--check, nothing is drawn and the figures are printed: rooms, arrows, and whether every arrow points down.
"""

import argparse
import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("training", "jfb", "app")
ENTRY = {"__init__", "__main__"}
"""Files that only start a package or name what is in it."""

Arrows = dict[str, set[str]]


def room_of(module: str) -> str:
    """``app.http.middleware`` is in the room ``app.http``, and ``app.settings`` is one."""
    return ".".join(module.split(".")[:2])


def find_arrows() -> Arrows:
    """Each room, with the rooms that it imports."""
    arrows: Arrows = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if module.split(".")[1] in ENTRY:
                continue
            targets = arrows.setdefault(room_of(module), set())
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                targets |= {found for name in names if (found := _existing_room(name))}
    return {room: targets - {room} for room, targets in arrows.items()}


def _existing_room(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] not in PACKAGES or len(parts) < 2:
        return None
    place = ROOT / parts[0] / parts[1]
    if place.is_dir() or place.with_suffix(".py").exists():
        return f"{parts[0]}.{parts[1]}"
    return f"{parts[0]}.__init__"  # a name that the package itself exports


def floors(arrows: Arrows) -> dict[str, int]:
    """How many rooms lie below each one at most; raises ``graphlib.CycleError`` for a circle."""
    height: dict[str, int] = {}
    for room in TopologicalSorter(arrows).static_order():
        height[room] = 1 + max((height[below] for below in arrows.get(room, ())), default=-1)
    return height


def within(arrows: Arrows, package: str) -> Arrows:
    """The rooms of one package, and the arrows between them."""
    own = {
        room: targets for room, targets in arrows.items() if room.startswith(f"{package}.") and room.split(".")[1] not in ENTRY
    }
    return {room: {below for below in targets if below in own} for room, targets in own.items()}


def implied(arrows: Arrows, room: str, below: str) -> bool:
    """Whether one room reaches another by a third one as well."""
    seen, todo = set(), [other for other in arrows[room] if other != below]
    while todo:
        place = todo.pop()
        if place == below:
            return True
        if place not in seen:
            seen.add(place)
            todo += arrows[place]
    return False


def draw(arrows: Arrows, target: Path) -> None:
    """Draw each package as a column, its entry above and what it stands on below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch

    colours = {"training": "#f2c14e", "jfb": "#7fb685", "app": "#6c9bd2"}
    figure, axes = plt.subplots(1, 3, figsize=(19, 9), width_ratios=[4, 4, 5])
    for axis, package in zip(axes, PACKAGES, strict=True):
        own = within(arrows, package)
        height = floors(own)
        rows: dict[int, list[str]] = defaultdict(list)
        for room in sorted(own):
            rows[height[room]].append(room)
        places: dict[str, tuple[float, float]] = {}
        for floor, names in rows.items():
            for k, room in enumerate(names):
                places[room] = ((k + 0.5 + 0.12 * (floor % 2)) / len(names), floor)
        for room, targets in own.items():
            for below in targets:
                faint = implied(own, room, below)
                axis.add_patch(
                    FancyArrowPatch(
                        places[room],
                        places[below],
                        arrowstyle="-|>",
                        mutation_scale=11,
                        shrinkA=14,
                        shrinkB=14,
                        color="#c9c9c9" if faint else "#444444",
                        linewidth=0.7 if faint else 1.3,
                        zorder=1 if faint else 2,
                    )
                )
        for room, (x, y) in places.items():
            axis.text(
                x,
                y,
                room.split(".")[1],
                ha="center",
                va="center",
                fontsize=11,
                zorder=3,
                bbox={"boxstyle": "round,pad=0.35", "facecolor": colours[package], "edgecolor": "white"},
            )
        axis.set_xlim(-0.12, 1.16)
        axis.set_ylim(-0.6, max(rows) + 0.6)
        count = sum(map(len, own.values()))
        axis.set_title(f"{package}/: {len(own)} rooms, {count} arrows", fontsize=14)
        axis.axis("off")
    figure.suptitle("training → jfb ← app; grey arrows are implied by black ones", fontsize=12)
    figure.tight_layout()
    figure.savefig(target, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="print the figures and draw nothing")
    check = parser.parse_args().check
    arrows = find_arrows()
    for package in PACKAGES:
        own = within(arrows, package)
        print(
            f"{package}: {len(own)} rooms, {sum(map(len, own.values()))} arrows, {max(floors(own).values()) + 1} floors, no circle"
        )
        if check:
            for room in sorted(own, key=lambda room: -floors(own)[room]):
                print(f"  {room} -> {', '.join(sorted(own[room])) or '-'}")
    if not check:
        draw(arrows, ROOT / "docs" / "architecture.png")


if __name__ == "__main__":
    main()
