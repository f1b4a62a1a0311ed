"""Mazes: checked by a search that shares nothing with the generator, pixel by pixel from the image."""

from collections import deque

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.mazes import COLOURS, Mazes, distinct_mazes, fingerprints

NAMES = {
    (0, 0, 0): "wall",
    (255, 255, 255): "floor",
    (255, 0, 255): "source",
    (255, 0, 0): "red",
    (0, 255, 0): "green",
    (0, 0, 255): "blue",
    (255, 255, 0): "yellow",
}


def named(image: NDArray[np.uint8]) -> dict[tuple[int, int], str]:
    """What each pixel of an RGB image ``[3, side, side]`` shows."""
    side = image.shape[1]
    return {(r, c): NAMES[tuple(image[:, r, c].tolist())] for r in range(side) for c in range(side)}


def search(pixels: dict[tuple[int, int], str], start: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Steps from a pixel to every pixel that can be reached, breadth first."""
    distance = {start: 0}
    waiting = deque([start])
    while waiting:
        row, column = waiting.popleft()
        for neighbour in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if pixels.get(neighbour, "wall") != "wall" and neighbour not in distance:
                distance[neighbour] = distance[row, column] + 1
                waiting.append(neighbour)
    return distance


@pytest.mark.parametrize(("size", "count"), [(3, 60), (4, 60), (8, 60), (13, 8)])
def test_every_cell_has_one_exit_by_one_path_and_the_label_is_that_of_the_source(size: int, count: int) -> None:
    mazes = distinct_mazes(size, count, seed=1)
    images = mazes.images()
    assert images.shape == (count, 3, 2 * size - 1, 2 * size - 1)
    for image, label, path_length, flood_depth in zip(images, mazes.labels, mazes.path_length, mazes.flood_depth, strict=True):
        pixels = named(image)
        places = {name: [place for place, found in pixels.items() if found == name] for name in NAMES.values()}
        assert all(len(places[name]) == 1 for name in ("source", *COLOURS))
        cells = [(2 * r, 2 * c) for r in range(size) for c in range(size)]
        assert all(pixels[cell] != "wall" for cell in cells)
        assert all(pixels[r, c] == "wall" for r in range(1, 2 * size - 1, 2) for c in range(1, 2 * size - 1, 2))
        # A forest of four trees has four edges less than cells; with one exit in each, every path is the only one.
        assert sum(name != "wall" for name in pixels.values()) == len(cells) + len(cells) - len(COLOURS)
        (source,) = places["source"]
        reached = {colour: search(pixels, places[colour][0]) for colour in COLOURS}
        assert all(sum(cell in found for found in reached.values()) == 1 for cell in cells)
        assert source in reached[COLOURS[label]]
        assert reached[COLOURS[label]][source] == path_length
        assert max(distance for found in reached.values() for distance in found.values()) == flood_depth


def versions(maze: NDArray[np.uint8]) -> set[bytes]:
    """A maze and its rotations and reflections."""
    turned = [np.rot90(maze, turns) for turns in range(4)]
    return {version.tobytes() for version in (*turned, *(np.fliplr(version) for version in turned))}


def test_no_maze_is_a_rotation_or_reflection_of_another_one_nor_of_those_to_leave_out() -> None:
    test = distinct_mazes(3, 2000, seed=1)
    train = distinct_mazes(3, 4000, seed=2, without=test)
    seen: set[bytes] = set()
    for maze in (*test.pixels, *train.pixels):
        assert maze.tobytes() not in seen
        seen |= versions(maze)
    # The sets are so small that without looking there would have been some.
    assert set(fingerprints(distinct_mazes(3, 4000, seed=2).pixels)) & set(fingerprints(test.pixels))


def test_a_fingerprint_is_the_same_for_the_eight_versions_of_a_maze() -> None:
    pixels = distinct_mazes(5, 50, seed=3).pixels
    turned = np.rot90(pixels, 1, axes=(1, 2))
    assert np.array_equal(fingerprints(pixels), fingerprints(turned[:, ::-1]))
    assert len(set(fingerprints(pixels))) == 50


def equal(one: Mazes, other: Mazes) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_a_seed_decides_the_mazes_and_fewer_are_the_first_of_more() -> None:
    many = distinct_mazes(6, 1500, seed=4)
    assert equal(distinct_mazes(6, 1500, seed=4), many)
    assert equal(distinct_mazes(6, 300, seed=4), many[:300])
    assert not np.array_equal(distinct_mazes(6, 1500, seed=5).pixels, many.pixels)


def test_classes_are_even_and_long_paths_occur() -> None:
    mazes = distinct_mazes(8, 4000, seed=0)
    assert np.abs(np.bincount(mazes.labels, minlength=4) / 4000 - 0.25).max() < 0.03
    assert mazes.path_length.min() == 2
    assert (mazes.path_length >= 36).mean() > 0.01
    assert len(mazes) == 4000


@pytest.mark.parametrize(
    ("size", "count", "message"), [(2, 1, "size: must be"), (65, 1, "size: must be"), (4, 0, "count: must be")]
)
def test_what_cannot_be_generated_is_rejected(size: int, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distinct_mazes(size, count, seed=0)
