"""The playground with a model of mazes, in a real browser: the editor, and the state as a heat map."""

import io
import os
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.app.flood import add_flood
from tests.app.routes.browsing import PHONE, page_of
from tests.app.running import RunningServer, running_server
from tests.training.data.test_mazes import named, search
from training.data.mazes import COLOURS, Mazes, distinct_mazes

Pixels = dict[tuple[int, int], str]
NOT_REACHED = (34, 20, 61)
"""RGB of zero in the heat map."""


@pytest.fixture(scope="module")
def mazes() -> Mazes:
    """The samples: the one with the longest path first, whose exit is not red, which is the answer of equal logits."""
    found = distinct_mazes(8, 60, seed=5)
    found = found[found.labels != 0]
    order = np.argsort(-found.path_length)[:3]
    return Mazes(*(getattr(found, name)[order] for name in ("pixels", "labels", "path_length", "flood_depth")))


@pytest.fixture(scope="module")
def maze_server(mazes: Mazes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("mazes")
    add_flood(folder / "store", mazes)
    with running_server(folder / "store", folder / "log", slots=8) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def opened(browser: Browser, maze_server: RunningServer) -> Iterator[Page]:
    """The playground, which does not replay; nothing may be said on the console."""
    with page_of(browser, maze_server.url, reduced_motion="reduce") as (page, said):
        expect(page.locator("#said")).to_contain_text("iteration", timeout=15_000)
        yield page
        assert said == []


@pytest.fixture
def page(opened: Page, mazes: Mazes) -> Page:
    """The same, with the first sample answered."""
    opened.get_by_role("group", name="Sample inputs").get_by_role("button").first.click()
    expect(opened.locator("#label")).to_have_text(COLOURS[mazes.labels[0]])
    return opened


def picture(page: Page, canvas: str) -> NDArray[np.uint8]:
    """What a canvas shows, in RGB, ``[height, width, 3]``."""
    url = page.evaluate("(id) => document.getElementById(id).toDataURL()", canvas)
    return np.asarray(Image.open(io.BytesIO(b64decode(url.partition(",")[2]))).convert("RGB"))


def shown(page: Page) -> Pixels:
    """What the editor shows, pixel by pixel of the maze."""
    image = picture(page, "maze")
    scale = len(image) // 15
    return named(image[scale // 2 :: scale, scale // 2 :: scale].transpose(2, 0, 1))


def place_of(pixels: Pixels, name: str) -> tuple[int, int]:
    (place,) = [place for place, found in pixels.items() if found == name]
    return place


def click(page: Page, place: tuple[int, int]) -> None:
    box = page.locator("#maze").bounding_box()
    assert box
    page.mouse.click(box["x"] + (place[1] + 0.5) * box["width"] / 15, box["y"] + (place[0] + 0.5) * box["height"] / 15)


def neighbours(place: tuple[int, int]) -> list[tuple[int, int]]:
    row, column = place
    near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [(r, c) for r, c in near if 0 <= r < 15 and 0 <= c < 15]


def expect_right_answer(page: Page) -> tuple[str, int]:
    """Wait until the page and the model say what an independent search says of the maze that is shown."""
    pixels = shown(page)
    reached = search(pixels, place_of(pixels, "source"))
    ((steps, colour),) = [(reached[place], name) for place, name in pixels.items() if name in COLOURS and place in reached]
    expect(page.locator("#maze-answer")).to_have_text(f"Right answer: {colour}, {steps} steps away.")
    expect(page.locator("#said")).to_contain_text(f"{colour} with")
    expect(page.locator("#label")).to_have_text(colour)
    return colour, steps


def flood(pixels: Pixels) -> dict[tuple[int, int], int]:
    """The iteration in which a flood from the exits reaches each pixel of the floor; it goes around corners in one step."""
    arrival = {place: 0 for place, name in pixels.items() if name in COLOURS}
    for row, column in (reached := list(arrival)):
        for place in ((r, c) for r in range(row - 1, row + 2) for c in range(column - 1, column + 2)):
            if place not in arrival and pixels.get(place, "wall") != "wall":
                arrival[place] = arrival[row, column] + 1
                reached.append(place)
    return arrival


def test_a_sample_is_shown_and_answered(page: Page, mazes: Mazes) -> None:
    assert shown(page) == named(mazes.images()[0])
    assert expect_right_answer(page) == (COLOURS[mazes.labels[0]], mazes.path_length[0])
    page.get_by_role("group", name="Sample inputs").get_by_role("button").nth(1).click()
    assert expect_right_answer(page) == (COLOURS[mazes.labels[1]], mazes.path_length[1])


def test_a_click_closes_and_opens_a_wall(page: Page) -> None:
    pixels = shown(page)
    around = [place for place in neighbours(place_of(pixels, "source")) if pixels[place] == "floor"]
    for place in around:
        click(page, place)
    assert shown(page) == pixels | dict.fromkeys(around, "wall")
    expect(page.locator("#maze-answer")).to_have_text("Right answer: none, no exit is connected.")
    for place in around:
        click(page, place)
    assert shown(page) == pixels
    expect_right_answer(page)


def test_exits_that_are_joined_are_reported(page: Page) -> None:
    pixels = shown(page)
    trees = {colour: search(pixels, place_of(pixels, colour)) for colour in COLOURS}
    (mine,) = [colour for colour in COLOURS if place_of(pixels, "source") in trees[colour]]
    wall, other = next(
        (place, colour)
        for place, name in pixels.items()
        if name == "wall" and sum(place) % 2 == 1
        for colour in COLOURS
        if colour != mine
        and {one in trees[mine] for one in neighbours(place) if one in trees[mine] or one in trees[colour]} == {True, False}
    )
    click(page, wall)
    expect(page.locator("#maze-answer")).to_have_text(
        re.compile(rf"Connected: (?=.*\b{mine}\b)(?=.*\b{other}\b).* one exit is\.")
    )


def test_a_click_on_a_cell_moves_the_source_there_and_no_exit_can_be_overwritten(page: Page) -> None:
    pixels = shown(page)
    start = place_of(pixels, "source")
    for colour in COLOURS:
        exit = place_of(pixels, colour)
        click(page, exit)
        assert shown(page)[exit] == colour
        reached = search(pixels, exit)
        cell = max((place for place in reached if not (place[0] % 2 or place[1] % 2)), key=lambda place: reached[place])
        click(page, cell)
        if cell != exit:
            assert place_of(shown(page), "source") == cell
            assert expect_right_answer(page) == (colour, reached[cell])
    click(page, start)
    assert shown(page) == pixels
    click(page, (1, 1))  # the corner of four cells
    assert shown(page) == pixels


def test_the_mouse_draws_walls_and_drags_the_source(page: Page) -> None:
    pixels = shown(page)
    box = page.locator("#maze").bounding_box()
    assert box
    unit = box["width"] / 15
    y = box["y"] + 1.5 * unit  # the row of walls between the first two rows of cells
    page.mouse.move(box["x"] + 0.5 * unit, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 14.5 * unit, y, steps=30)
    page.mouse.up()
    row = {(1, column): name for (r, column), name in shown(page).items() if r == 1 and column % 2 == 0 for name in [name]}
    assert set(row.values()) == {"wall" if pixels[1, 0] == "floor" else "floor"}
    assert {place: name for place, name in shown(page).items() if place[0] != 1} == {
        place: name for place, name in pixels.items() if place[0] != 1
    }


def test_the_keyboard_alone_edits(page: Page) -> None:
    pixels = shown(page)
    wall = next(place for place, name in pixels.items() if name in ("wall", "floor") and sum(place) % 2 == 1 and place[0] > 2)
    cell = next(
        place for place, name in pixels.items() if name == "floor" and not (place[0] % 2 or place[1] % 2) and place > wall
    )
    editor = page.locator("#maze")
    editor.focus()
    for place in (wall, cell):
        for key, moves in (("ArrowLeft", 14), ("ArrowUp", 14), ("ArrowDown", place[0]), ("ArrowRight", place[1])):
            for _ in range(moves):
                editor.press(key)
        editor.press(" ")
    editor.blur()
    expected = pixels | {
        wall: "wall" if pixels[wall] == "floor" else "floor",
        place_of(pixels, "source"): "floor",
        cell: "source",
    }
    assert shown(page) == expected


@pytest.mark.parametrize("size", [8, 5, 3])
def test_a_new_maze_has_the_size_and_the_difficulty_that_were_chosen(page: Page, size: int) -> None:
    page.locator("#maze-size").select_option(str(size))
    for difficulty, share in (("easy", 0.25), ("medium", 0.5), ("hard", 1)):
        page.locator("#maze-difficulty").select_option(difficulty)
        page.locator("#new-maze").click()
        pixels = shown(page)
        cells = [place for place, name in pixels.items() if name != "wall" and not (place[0] % 2 or place[1] % 2)]
        assert len(cells) == size**2
        assert len({row for row, _ in cells}) == len({column for _, column in cells}) == size
        assert sum(name != "wall" for name in pixels.values()) == 2 * size**2 - 4  # four trees
        reached = [search(pixels, place_of(pixels, colour)) for colour in COLOURS]
        assert all(sum(cell in tree for tree in reached) == 1 for cell in cells)
        distance = {cell: min(tree[cell] for tree in reached if cell in tree) for cell in cells}
        wanted = share * max(distance.values())
        nearest = min(abs(steps - wanted) for steps in distance.values() if steps)
        _, steps = expect_right_answer(page)
        assert abs(steps - wanted) == nearest


def test_the_heat_map_is_the_flood_and_the_label_flips_when_it_arrives(page: Page, mazes: Mazes) -> None:
    pixels = shown(page)
    source = place_of(pixels, "source")
    arrival = flood(pixels)
    page.locator("#heat-by").select_option("magnitude")
    for cap, label in ((arrival[source] - 1, "red"), (arrival[source], COLOURS[mazes.labels[0]]), (3, "red")):
        page.locator("#cap").fill(f"{round(np.log10(cap) / 0.02) * 0.02:.2f}")
        expect(page.locator("#iterations")).to_have_text(str(cap))
        expect(page.locator("#label")).to_have_text(label)
        expect(page.locator("#heat-iteration")).to_have_text(str(cap))
        heat = picture(page, "heat")
        assert heat.shape == (15, 15, 3)
        lit = {place for place in arrival if tuple(heat[place]) != NOT_REACHED}
        assert lit == {place for place, iteration in arrival.items() if iteration <= cap} | {source}
    page.locator("#cap").fill("2")


def test_a_maze_replays_by_itself_with_the_walls_in_its_heat_map(
    browser: Browser, maze_server: RunningServer, mazes: Mazes
) -> None:
    with page_of(browser, maze_server.url) as (page, said):
        expect(page.locator("#end")).to_have_text("Iterating…")
        expect(page.locator("#label")).to_have_text("red")
        expect(page.locator("#label")).to_have_text(COLOURS[mazes.labels[0]])
        expect(page.locator("#end")).to_contain_text("Converged")
        expect(page.locator("#heat-by")).to_have_value("change")
        marks = picture(page, "heat").transpose(2, 0, 1)
        image = mazes.images()[0]
        not_floor = (image != 255).any(0)
        assert (marks[:, not_floor] == image[:, not_floor]).all()
        assert said == []


def test_a_finger_edits_and_a_phone_need_not_scroll_sideways(browser: Browser, maze_server: RunningServer) -> None:
    phone = {"viewport": PHONE, "is_mobile": True, "has_touch": True, "reduced_motion": "reduce"}
    with page_of(browser, maze_server.url, **phone) as (page, said):
        expect(page.locator("#said")).to_contain_text("iteration")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        pixels = shown(page)
        box = page.locator("#maze").bounding_box()
        assert box
        page.touchscreen.tap(box["x"] + 1.5 * box["width"] / 15, box["y"] + 0.5 * box["height"] / 15)
        assert shown(page)[0, 1] == ("wall" if pixels[0, 1] == "floor" else "floor")
        assert said == []


@pytest.mark.skipif("JFB_SCREENSHOTS" not in os.environ, reason="a picture is written when JFB_SCREENSHOTS names a folder")
def test_a_screenshot_for_the_documentation(browser: Browser, tmp_path: Path) -> None:
    """Of the trained model in ``model_store``, or where ``JFB_MODEL_STORE`` says."""
    store = Path(os.environ.get("JFB_MODEL_STORE", "model_store"))
    with running_server(store, tmp_path / "log") as running:
        running.wait_until_ready()
        with page_of(browser, running.url) as (page, _):
            page.locator("#model").select_option("mazes")
            for _ in range(40):  # until the answer changes late
                page.locator("#new-maze").click()
                expect(page.locator("#end")).to_have_text("Iterating…")
                page.wait_for_timeout(1300)  # half of the replay
                if f"answer: {page.locator('#label').inner_text()}," not in page.locator("#maze-answer").inner_text():
                    break
            page.screenshot(path=Path(os.environ["JFB_SCREENSHOTS"]) / "playground-mazes.png")
            page.goto(f"{running.url}/models/mazes")
            expect(page.locator("#card h2")).to_be_visible()
            page.screenshot(path=Path(os.environ["JFB_SCREENSHOTS"]) / "model.png")
