"""Mazes with coloured exits: a task whose answer has to be reached step by step.

An image of ``2 size − 1`` pixels per side shows ``size × size`` cells with walls between them, four exits of four colours, and a
source. Every cell is connected to exactly one exit, by exactly one path; the class is the colour of the source's exit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jfb.config import Strict

COLOURS = ("red", "green", "blue", "yellow")
"""Of the exits: the classes."""
WALL, FLOOR, SOURCE = 0, 1, 2
FIRST_EXIT = 3
PALETTE = np.array(
    [
        (0, 0, 0),
        (255, 255, 255),
        (255, 0, 255),
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 0),
    ],
    np.uint8,
)
"""RGB of what a pixel shows: wall, floor, source (magenta), and the exits in the order of ``COLOURS``."""
MIN_SIZE, MAX_SIZE = 3, 64
BATCH = 1024
"""Mazes that are made at a time."""


class MazesRecipe(Strict):
    """Arguments of the source ``mazes`` in a recipe."""

    size: int = Field(default=8, ge=MIN_SIZE, le=MAX_SIZE)
    """Cells per side; images have ``2 size − 1`` pixels per side."""
    train: int = Field(default=8000, ge=1)
    """Mazes in the training split."""
    test: int = Field(default=2000, ge=1)
    """Mazes in the test split, none of which is in the training split; more training mazes leave it as it is."""
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Mazes:
    """n mazes of one size."""

    pixels: NDArray[np.uint8]
    """Places in ``PALETTE``, shape ``[n, side, side]`` with ``side = 2 size − 1``."""
    labels: NDArray[np.int64]
    """Places in ``COLOURS``, shape ``[n]``."""
    path_length: NDArray[np.int64]
    """Steps from pixel to pixel on the path from the source to its exit, shape ``[n]``."""
    flood_depth: NDArray[np.int64]
    """Steps until a flood that starts at all exits has reached every cell, shape ``[n]``."""

    def images(self) -> NDArray[np.uint8]:
        """RGB images, shape ``[n, 3, side, side]``."""
        return np.ascontiguousarray(PALETTE[self.pixels].transpose(0, 3, 1, 2))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: NDArray[np.bool_] | slice) -> "Mazes":
        return Mazes(self.pixels[rows], self.labels[rows], self.path_length[rows], self.flood_depth[rows])


@lru_cache(maxsize=8)  # the stages of a curriculum and the steps of a command share them; generating 10,000 takes one second
def generate_splits(recipe: MazesRecipe) -> dict[str, Mazes]:
    """Generate the splits ``train`` and ``test``."""
    test = distinct_mazes(recipe.size, recipe.test, seed=2 * recipe.seed)
    return {"train": distinct_mazes(recipe.size, recipe.train, seed=2 * recipe.seed + 1, without=test), "test": test}


def distinct_mazes(size: int, count: int, *, seed: int, without: Mazes | None = None) -> Mazes:
    """Generate mazes no two of which are equal, nor equal to one of others, up to rotations and reflections.

    Args:
        size: cells per side, from 3 to 64.
        count: of mazes, at least 1.
        seed: the same seed gives the same mazes; those of a smaller count are the first ones of a larger.
        without: mazes that must not occur.

    Raises:
        ValueError: for a size or count out of range.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size: must be between {MIN_SIZE} and {MAX_SIZE} (got {size})")
    if count < 1:
        raise ValueError(f"count: must be at least 1 (got {count})")
    seen = set() if without is None else set(fingerprints(without.pixels).tolist())
    found: list[Mazes] = []
    missing = count
    for batch in _batches(size, seed):
        new = []
        for fingerprint in fingerprints(batch.pixels).tolist():
            new.append(fingerprint not in seen)
            seen.add(fingerprint)
        found.append(batch[np.array(new)][:missing])
        missing -= len(found[-1])
        if not missing:
            break
    return Mazes(
        *(
            np.concatenate([getattr(batch, name) for batch in found])
            for name in ("pixels", "labels", "path_length", "flood_depth")
        )
    )


def fingerprints(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash mazes ``[n, side, side]`` to ``[n]``, equally for the eight rotations and reflections of a maze."""
    side = pixels.shape[1]
    keys = np.random.default_rng(0).integers(1 << 64, size=(len(PALETTE), side, side), dtype=np.uint64)
    rows, columns = np.indices((side, side))
    symmetric = []
    for turns in range(4):
        turned = np.rot90(pixels, turns, axes=(1, 2))
        for version in (turned, turned[:, :, ::-1]):
            symmetric.append(np.bitwise_xor.reduce(keys[version, rows, columns], axis=(1, 2)))
    smallest: NDArray[np.uint64] = np.min(symmetric, axis=0)
    return smallest


def _batches(size: int, seed: int) -> Iterator[Mazes]:
    generator = np.random.default_rng((size, seed))
    while True:
        yield _make(generator, size, BATCH)


def _make(generator: np.random.Generator, size: int, count: int) -> Mazes:
    """Generate mazes, all at once: each step does the same to every maze."""
    each = np.arange(count)
    exits = generator.permuted(np.tile(np.arange(size * size), (count, 1)), axis=1)[:, : len(COLOURS)]
    floor, tree = _spanning_forests(generator, size, exits)
    rows, columns = _pixel(exits, size)
    distance = _distances(floor, each, rows, columns)[:, ::2, ::2].reshape(count, size * size)

    # A length evenly among those that occur in the maze, then a cell evenly among those at that length.
    longest = int(distance.max())
    lengths = np.arange(2, longest + 1, 2)
    occurs = (distance[:, :, None] == lengths).any(1)
    length = lengths[np.where(occurs, generator.random(occurs.shape), -1).argmax(1)]
    at_length = distance == length[:, None]
    source = np.where(at_length, generator.random(at_length.shape), -1).argmax(1)

    pixels = np.where(floor, FLOOR, WALL).astype(np.uint8)
    pixels[each[:, None], rows, columns] = np.arange(FIRST_EXIT, FIRST_EXIT + len(COLOURS))
    pixels[(each, *_pixel(source, size))] = SOURCE
    labels = (tree[each[:, None], exits] == tree[each, source][:, None]).argmax(1)
    return Mazes(pixels, labels, length, distance.max(1).astype(np.int64))


def _spanning_forests(
    generator: np.random.Generator, size: int, exits: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Kruskal's algorithm over shuffled edges; it refuses loops, and unions of two trees that both hold an exit.

    Returns:
        Whether a pixel is floor, ``[n, side, side]``, and a name for the tree of each cell, ``[n, cells]``.
    """
    count, cells, side = len(exits), size * size, 2 * size - 1
    each = np.arange(count)
    grid = np.arange(cells).reshape(size, size)
    edges = np.concatenate(
        [
            np.stack([grid[:, :-1].ravel(), grid[:, 1:].ravel()], 1),
            np.stack([grid[:-1].ravel(), grid[1:].ravel()], 1),
        ]
    )
    order = generator.permuted(np.tile(np.arange(len(edges)), (count, 1)), axis=1)
    tree = np.tile(np.arange(cells, dtype=np.int16), (count, 1))
    holds_exit = np.zeros((count, cells), bool)
    holds_exit[each[:, None], exits] = True
    floor = np.zeros((count, side, side), bool)
    floor[:, ::2, ::2] = True
    for edge in order.T:
        one, other = edges[edge].T
        kept, gone = tree[each, one], tree[each, other]
        both = holds_exit[each, kept] & holds_exit[each, gone]
        joined = np.flatnonzero((kept != gone) & ~both)
        kept, gone = kept[joined], gone[joined]
        holds_exit[joined, kept] |= holds_exit[joined, gone]
        trees = tree[joined]
        tree[joined] = np.where(trees == gone[:, None], kept[:, None], trees)
        # The pixel between two cells is halfway between their pixels.
        (rows, columns), (other_rows, other_columns) = _pixel(one[joined], size), _pixel(other[joined], size)
        floor[joined, (rows + other_rows) // 2, (columns + other_columns) // 2] = True
    return floor, tree.astype(np.int64)


def _distances(
    floor: NDArray[np.bool_], each: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.int16]:
    """Steps from each pixel of the floor to the nearest exit, ``[n, side, side]``, by flooding from all exits; -1 in walls."""
    distance = np.full(floor.shape, -1, np.int16)
    distance[each[:, None], rows, columns] = 0
    wet = distance == 0
    step = 0
    while True:
        step += 1
        near = wet.copy()
        near[:, 1:] |= wet[:, :-1]
        near[:, :-1] |= wet[:, 1:]
        near[:, :, 1:] |= wet[:, :, :-1]
        near[:, :, :-1] |= wet[:, :, 1:]
        new = near & floor & ~wet
        if not new.any():
            return distance
        distance[new] = step
        wet |= new


def _pixel(cell: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of a cell's pixel."""
    return 2 * (cell // size), 2 * (cell % size)
