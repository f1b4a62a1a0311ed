"""The pages, in a real browser against running servers.

With the environment variable ``JFB_SCREENSHOTS`` the pictures of the documentation are written to the folder that it names.
"""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from jfb.store import ModelVersion, remove_alias, set_alias
from tests.app.routes.browsing import PHONE, page_of
from tests.app.running import ENDLESS, RunningServer, connection, rows, running_server, wait_until

SEVEN = [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)]
THREE = [(0.3, 0.15), (0.6, 0.15), (0.68, 0.3), (0.42, 0.46), (0.7, 0.62), (0.6, 0.85), (0.3, 0.83)]


@pytest.fixture
def page(browser: Browser, digits_server: RunningServer) -> Iterator[Page]:
    """The playground of a server with the trained digits model; nothing may be said on the console."""
    with page_of(browser, digits_server.url) as (page, said):
        expect(page.locator("#said")).to_contain_text("iteration", timeout=15_000)  # about the first sample
        yield page
        assert said == []


def draw(page: Page, stroke: list[tuple[float, float]]) -> None:
    """Draw with the mouse; places are shares of the canvas."""
    pad = page.locator("#pad")
    expect(pad).to_be_visible()  # which takes until the model that was chosen is there
    box = pad.bounding_box()
    assert box
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
    page.mouse.move(*places[0])
    page.mouse.down()
    for x, y in places[1:]:
        page.mouse.move(x, y, steps=8)
    page.mouse.up()


def set_slider(page: Page, name: str, value: float) -> None:
    page.locator(f"#{name}").fill(str(value))


def iterations(page: Page) -> int:
    return int(page.locator("#iterations").inner_text().replace(",", ""))


def test_a_stroke_is_answered_with_a_label_and_what_it_cost(page: Page) -> None:
    page.locator("#clear").click()
    expect(page.locator("#label")).to_have_text("–")
    draw(page, SEVEN)
    expect(page.locator("#label")).to_have_text("7")
    expect(page.locator("#said")).to_contain_text("7 with")
    count = iterations(page)
    assert 1 < count < 100
    expect(page.locator("#end")).to_contain_text("Converged: the last change is below the tolerance")
    expect(page.locator("#residuals circle")).to_have_count(count)
    expect(page.locator("#bars li")).to_have_count(5)
    expect(page.locator("#bars .name").first).to_have_text("7")


def test_a_new_input_clears_the_old_answer(page: Page) -> None:
    expect(page.locator("#confidence")).to_have_text("High confidence: 100%")
    page.route("**/predict", lambda route: None)  # no answer
    page.get_by_role("button", name="Sample: 5").click()
    expect(page.locator("#label")).to_have_text("–")
    expect(page.locator("#end")).to_have_text("Waiting for the answer…")
    expect(page.locator("#said")).to_be_empty()
    expect(page.locator("#bars li")).to_have_count(0)
    expect(page.locator("#confidence")).to_be_empty()
    expect(page.locator("#copies button").first).to_be_disabled()
    page.unroute("**/predict")
    set_slider(page, "tolerance", -2)
    expect(page.locator("#label")).to_have_text("5")


def test_an_error_takes_the_place_of_the_answer(browser: Browser, digits_server: RunningServer) -> None:
    with page_of(browser, digits_server.url) as (page, _):
        expect(page.locator("#said")).to_contain_text("iteration")
        page.route("**/predict", lambda route: route.fulfill(status=500, json={"error": "engine: broken"}))
        set_slider(page, "tolerance", -2)
        expect(page.locator("#error-text")).to_have_text("engine: broken")
        expect(page.locator("#reading")).to_be_hidden()
        expect(page.locator("#said")).to_be_empty()
        expect(page.locator("#residuals circle")).to_have_count(0)
        page.unroute("**/predict")
        set_slider(page, "tolerance", -3)
        expect(page.locator("#reading")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()


def test_what_converges_without_confidence_does_not_look_like_a_success(browser: Browser, strict_server: RunningServer) -> None:
    with page_of(browser, strict_server.url) as (page, said):  # its model has random weights
        page.locator("#model").select_option("digits")
        draw(page, SEVEN)
        expect(page.locator("#end")).to_contain_text("Converged")
        expect(page.locator("#confidence")).to_have_text(re.compile(r"^Low confidence: \d+%, next is \d with \d+%$"))
        expect(page.locator("#label")).to_have_class(re.compile("low"))
        assert said == []


def test_bars_start_at_one_place_whatever_their_labels(browser: Browser, strict_server: RunningServer) -> None:
    with page_of(browser, strict_server.url) as (page, _):
        page.locator("#model").select_option("slow")
        page.locator("#numbers").fill("1, 2, 3, 4")
        expect(page.locator("#bars li")).to_have_count(2)
        lefts = page.evaluate("[...document.querySelectorAll('#bars .track')].map((one) => one.getBoundingClientRect().left)")
        assert sorted(page.locator("#bars .name").all_inner_texts()) == ["no", "yes"]
        assert lefts[0] == lefts[1]


def test_curves_that_are_flat_are_a_sentence(page: Page) -> None:
    expect(page.locator("#settled")).to_have_text("Label settled at iteration 1: 0, 100% from then on.")
    expect(page.locator("#probabilities")).to_be_hidden()
    expect(page.locator("#residuals")).to_be_visible()
    set_slider(page, "cap", 0)
    expect(page.locator("#one-residual")).to_contain_text("After one iteration: ")
    expect(page.locator("#residuals")).to_be_hidden()


def test_the_time_in_the_engine_is_part_of_the_round_trip(page: Page) -> None:
    whole, engine = (float(page.locator(name).inner_text().removesuffix(" ms")) for name in ("#round-trip", "#engine-time"))
    assert 0 < engine <= whole
    expect(page.locator("#engine-parts")).to_have_text(re.compile(r"^[\d.]+ ms queue \+ [\d.]+ ms compute$"))


def copied(page: Page, format: str) -> str:
    """What a button of "Copy as" puts onto the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#copies").get_by_role("button", name=format).click()  # disabled until the answer is that to the settings
    expect(page.locator("#copied")).to_contain_text(f"{format} copied")
    return str(page.evaluate("navigator.clipboard.readText()"))


def test_the_request_is_copied_as_programs_that_send_it(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Sample: 6").click()
    expect(page.locator("#label")).to_have_text("6")
    set_slider(page, "tolerance", -5)
    (tmp_path / "request.sh").write_text(copied(page, "curl"))
    (tmp_path / "request.py").write_text(copied(page, "Python"))
    count = iterations(page)
    program = copied(page, "JavaScript").replace("console.log(", "return (")
    answers = [
        json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
        for command in (["sh", tmp_path / "request.sh"], [sys.executable, tmp_path / "request.py"])
    ]
    answers.append(page.evaluate(f"async () => {{ {program} }}"))
    for answer in answers:
        (prediction,) = answer["predictions"]
        assert (prediction["label"], prediction["iterations"]) == ("6", count)


def test_a_link_restores_the_model_the_input_and_the_settings(page: Page, digits_server: RunningServer) -> None:
    page.get_by_role("button", name="Sample: 8").click()
    page.locator("#solver").select_option("anderson")
    page.locator("#stop").check()
    set_slider(page, "cap", 1)
    set_slider(page, "tolerance", -4.3)
    expect(page.locator("#label")).to_have_text("8")
    link, body = copied(page, "Link"), json.loads(copied(page, "curl").split("-d '")[1].removesuffix("'\n"))
    assert link.startswith(f"{digits_server.url}/?model=digits&")
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("#label")).to_have_text("8")
    assert json.loads(copied(page, "curl").split("-d '")[1].removesuffix("'\n")) == body
    assert (body["solver"], body["stop"], body["max_iterations"]) == ("anderson", "label", 10)


def test_a_link_to_a_model_that_is_not_served_says_so(browser: Browser, digits_server: RunningServer) -> None:
    with page_of(browser, f"{digits_server.url}/?model=none") as (page, _):
        expect(page.locator("#error-text")).to_have_text("The server has no model none.")
        page.wait_for_timeout(300)  # longer than the page waits before it sends a sample
        expect(page.locator("#error")).to_be_visible()
        page.get_by_role("button", name="Sample: 8").click()
        expect(page.locator("#label")).to_have_text("8")


def test_a_knob_that_moves_while_another_model_is_chosen_sends_no_input_of_the_old_one(
    browser: Browser, strict_server: RunningServer
) -> None:
    held: list[Route] = []
    with page_of(browser, f"{strict_server.url}/?model=wild") as (page, said):
        page.locator("#numbers").fill("0, 0")
        expect(page.locator("#said")).to_contain_text("iteration")
        page.route("**/models/digits/samples", lambda route: held.append(route))
        page.locator("#model").select_option("digits")
        with page.expect_request(re.compile("/digits/|/predict")) as request:  # sent when the knob stands still
            set_slider(page, "tolerance", -2)
        assert request.value.url.endswith("/models/digits/samples")
        expect(page.locator("#error")).to_be_hidden()
        for route in held:
            route.continue_()
        expect(page.locator("#end")).to_have_text("Draw, or choose a sample")
        assert said == []


def save_digits(server: RunningServer, folder: Path) -> None:
    """Write the samples as PNG files, named after their labels, and a file that is no image."""
    folder.mkdir()
    for sample in server.client.get("/models/digits/samples").json():
        pixels = np.array(sample["input"][0], dtype=float) * 255 / 16
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{sample['label']}.png")
    (folder / "notes.txt").write_text("not an image")


def test_a_batch_is_a_table_and_a_csv_file(browser: Browser, digits_server: RunningServer, tmp_path: Path) -> None:
    save_digits(digits_server, tmp_path / "digits")
    (tmp_path / "digits" / "broken.png").write_text("not an image")
    with page_of(browser, digits_server.url) as (page, _):
        expect(page.locator("#said")).to_contain_text("iteration")
        page.locator("#folder").set_input_files(tmp_path / "digits")
        summary = page.locator("#batch-summary")
        expect(summary).to_have_text(
            re.compile(r"^11 images · mean [\d.]+ iterations · 1 failed · 1 file ignored: not PNG or JPEG$")
        )
        expect(page.locator("#batch-rows tr")).to_have_count(11)
        expect(page.locator("#batch-rows tr").last).to_be_in_viewport()
        with page.expect_download() as download:
            page.locator("#batch-csv").click()
        assert download.value.suggested_filename == "digits.csv"
        with Path(download.value.path()).open() as file:
            lines = list(csv.DictReader(file))
    found = {Path(line["file"]).stem: line for line in lines}
    assert {name: line["label"] for name, line in found.items()} == {str(k): str(k) for k in range(10)} | {"broken": ""}
    assert found["broken"]["error"]
    assert {line["status"] for name, line in found.items() if name != "broken"} == {"converged"}
    assert all(0.5 < float(found[str(k)]["probability"]) <= 1 for k in range(10))


def test_a_folder_that_is_dropped_is_a_batch(page: Page, digits_server: RunningServer, tmp_path: Path) -> None:
    save_digits(digits_server, tmp_path / "digits")
    drop(page, tmp_path / "digits")
    expect(page.locator("#batch-rows tr")).to_have_count(10)
    expect(page.locator("#batch-rows tr").nth(3)).to_contain_text("digits/3.png")


def test_a_smaller_tolerance_costs_more_iterations_and_a_cap_ends_them(page: Page) -> None:
    counts = []
    for power in (-1, -3, -5):
        before = page.locator("#costs rect").count()
        set_slider(page, "tolerance", power)
        expect(page.locator("#costs rect")).to_have_count(before + 1)
        counts.append(iterations(page))
    assert counts[0] < counts[1] < counts[2]
    set_slider(page, "cap", 0.3)  # 10 to that power is 2
    expect(page.locator("#end")).to_have_text("Stopped at the maximum number of iterations, above the tolerance")
    assert iterations(page) == 2


def test_the_solver_and_the_stop_are_those_of_the_request(page: Page, digits_server: RunningServer) -> None:
    sample = digits_server.client.get("/models/digits/samples").json()[3]
    expected = {
        (solver, stop): digits_server.predict(
            {"inputs": [sample["input"]], "tolerance": 1e-5, "solver": solver, "stop": stop}
        ).json()["predictions"][0]
        for solver, stop in (("picard", "tolerance"), ("anderson", "tolerance"), ("anderson", "label"))
    }
    counts = [answer["iterations"] for answer in expected.values()]
    assert counts[0] > counts[1] > counts[2]
    assert expected["anderson", "label"]["status"] == "label_stable"
    page.get_by_role("button", name="Sample: 3").click()
    set_slider(page, "tolerance", -5)
    page.locator("#solver").select_option("picard")
    expect(page.locator("#said")).to_contain_text(f"after {counts[0]} iterations")
    page.locator("#solver").select_option("anderson")
    expect(page.locator("#said")).to_contain_text(f"after {counts[1]} iterations")
    page.get_by_label("stop when the label is settled").check()
    expect(page.locator("#said")).to_contain_text(f"after {counts[2]} iteration")
    expect(page.locator("#end")).to_contain_text("Label settled: it leads by")
    page.get_by_label("stop when the label is settled").uncheck()
    page.locator("#solver").select_option("picard")
    expect(page.locator("#said")).to_contain_text(f"after {counts[0]} iterations")


def test_what_a_model_does_not_offer_cannot_be_chosen(browser: Browser, strict_server: RunningServer) -> None:
    models = {one["name"]: one for one in strict_server.client.get("/models").json()["models"]}
    assert len({one["label_stop"] is None for one in models.values()}) == 2  # some do, some do not
    with page_of(browser, strict_server.url) as (page, said):
        for name, model in models.items():
            page.locator("#model").select_option(name)
            stop = page.locator("#stop")
            expect(stop).to_be_disabled() if model["label_stop"] is None else expect(stop).to_be_enabled()
            expect(page.locator("#solver option")).to_have_text(model["solvers"])
        assert said == []


def test_a_sample_is_answered_as_the_api_answers_it(page: Page, digits_server: RunningServer) -> None:
    sample = digits_server.client.get("/models/digits/samples").json()[4]
    answer = digits_server.predict({"inputs": [sample["input"]]}).json()["predictions"][0]
    page.get_by_role("button", name="Sample: 4").click()
    expect(page.locator("#label")).to_have_text(answer["label"])
    expect(page.locator("#said")).to_contain_text(f"after {answer['iterations']} iterations")


def test_the_state_is_shown_as_a_heat_map(page: Page) -> None:
    expect(page.locator("#heat-iteration")).to_have_text(str(iterations(page)))
    expect(page.locator("#heat-shape")).to_have_text("4 × 4")
    size = page.evaluate("[document.getElementById('heat').width, document.getElementById('heat').height]")
    assert size == [4, 4]
    before = page.evaluate("document.getElementById('heat').toDataURL()")
    page.locator("#heat-by").select_option("change")
    assert page.evaluate("document.getElementById('heat').toDataURL()") != before
    page.locator("#clear").click()
    expect(page.locator("#heat-iteration")).to_have_text("–")


def test_an_image_file_is_answered(page: Page, tmp_path: Path) -> None:
    pixels = np.full((64, 48), 255, dtype=np.uint8)
    pixels[8:56, 20:28] = 0  # a dark bar on white paper
    Image.fromarray(pixels).save(tmp_path / "one.png")
    page.locator("#file").set_input_files(tmp_path / "one.png")
    expect(page.locator("#costs rect")).to_have_count(2)
    page.locator("#invert").click()
    expect(page.locator("#costs rect")).to_have_count(3)
    expect(page.locator("#label")).to_have_text("1")
    (tmp_path / "text.png").write_text("not an image")
    page.locator("#file").set_input_files(tmp_path / "text.png")
    expect(page.get_by_role("alert")).to_contain_text("is not an image")


def test_a_file_dropped_on_the_page_is_answered(page: Page, tmp_path: Path) -> None:
    pixels = np.zeros((40, 40), dtype=np.uint8)
    pixels[5:35, 17:23] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    drop(page, tmp_path / "one.png")
    expect(page.locator("#costs rect")).to_have_count(2)
    expect(page.locator("#label")).to_have_text("1")


def drop(page: Page, *files: Path) -> None:
    """Drag files or folders from another program onto the page."""
    box = page.locator("#drop").bounding_box()
    assert box
    where = {"x": box["x"] + 20, "y": box["y"] + 20}
    browser = page.context.new_cdp_session(page)

    def drag(kind: str) -> None:
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        browser.send("Input.dispatchDragEvent", {"type": kind, **where, "data": data})

    drag("dragEnter")
    drag("dragOver")
    expect(page.locator("#drop")).to_have_class("paper over")
    drag("drop")
    expect(page.locator("#drop")).to_have_class("paper")


def test_a_finger_draws_and_does_not_scroll(browser: Browser, digits_server: RunningServer) -> None:
    with page_of(browser, digits_server.url, viewport=PHONE, is_mobile=True, has_touch=True) as (page, said):
        expect(page.locator("#said")).to_contain_text("iteration")
        page.locator("#clear").tap()
        expect(page.locator("#label")).to_have_text("–")
        page.locator("#pad").scroll_into_view_if_needed()
        box = page.locator("#pad").bounding_box()
        assert box
        scrolled = page.evaluate("scrollY")
        screen = page.context.new_cdp_session(page)

        def touch(kind: str, *places: tuple[float, float]) -> None:
            points = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in places]
            screen.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", SEVEN[0])
        for (x0, y0), (x1, y1) in pairwise(SEVEN):
            for share in np.linspace(0.1, 1, 10):
                touch("touchMove", (x0 + float(share) * (x1 - x0), y0 + float(share) * (y1 - y0)))
        touch("touchEnd")
        expect(page.locator("#label")).to_have_text("7")
        expect(page.locator("#said")).to_contain_text("7 with")
        assert page.evaluate("scrollY") == scrolled
        assert said == []


def test_the_keyboard_alone_draws_and_moves_the_knobs(page: Page) -> None:
    pad = page.locator("#pad")
    pad.focus()
    pad.press("Delete")
    expect(page.locator("#label")).to_have_text("–")
    for key in ["ArrowUp"] * 8 + [" "] + ["ArrowDown"] * 16:
        pad.press(key)
    expect(page.locator("#label")).to_have_text("1")
    before = page.locator("#tolerance-value").inner_text()
    page.locator("#tolerance").press("ArrowRight")
    expect(page.locator("#tolerance-value")).not_to_have_text(before)


def test_every_control_has_a_name(page: Page) -> None:
    page.locator("#samples button").first.wait_for()
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, select, input, textarea, canvas[tabindex]")]
            .filter((one) => !one.labels?.length && !one.ariaLabel && !one.textContent.trim()).map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_a_replay_ends_where_it_began(page: Page) -> None:
    count = iterations(page)
    page.locator("#replay").click()
    expect(page.locator("#end")).to_have_text("Iterating…")
    expect(page.locator("#end")).to_contain_text("Converged: the last change is below the tolerance")
    assert iterations(page) == count


def test_a_server_with_keys_requires_one(browser: Browser, keyed_server: RunningServer) -> None:
    with page_of(browser, keyed_server.url) as (page, _):
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("This server requires an API key")
        for wrong in ("wrong", "schlüssel"):
            page.locator("#key").fill(wrong)
            page.locator("#key").press("Enter")
            expect(alert).to_contain_text("Invalid API key")
        page.locator("#key").fill("secret")
        page.locator("#key").press("Enter")
        expect(alert).to_be_hidden()
        draw(page, SEVEN)
        expect(page.locator("#said")).to_contain_text("iteration")


def test_a_full_queue_is_reported_and_retried(browser: Browser, strict_server: RunningServer) -> None:
    with page_of(browser, strict_server.url) as (page, _):
        page.locator("#model").select_option("slow")
        with connection(strict_server, ENDLESS | {"inputs": [[0, 1, 2, 3]] * 4}):
            wait_until(lambda: rows(strict_server, "waiting") == 2, 10, "two rows wait")
            with connection(strict_server, ENDLESS | {"inputs": [[0, 1, 2, 3]] * 2}):
                wait_until(lambda: rows(strict_server, "waiting") == 4, 10, "the queue is full")
                page.locator("#numbers").fill("1, 2, 3, 4")
                expect(page.get_by_role("alert")).to_contain_text("busy")
        expect(page.locator("#said")).to_contain_text("after 100 iterations", timeout=30_000)
        expect(page.get_by_role("alert")).to_be_hidden()


def test_a_request_that_is_superseded_is_cancelled(browser: Browser, strict_server: RunningServer) -> None:
    with page_of(browser, strict_server.url) as (page, said):
        page.locator("#model").select_option("slow")
        set_slider(page, "tolerance", -7)
        set_slider(page, "cap", 6)
        page.locator("#numbers").fill("1, 2, 3, 4")
        wait_until(lambda: rows(strict_server, "active") == 1, 10, "its row is in")
        set_slider(page, "cap", 0.7)
        expect(page.locator("#said")).to_contain_text("after 5 iterations")
        wait_until(lambda: rows(strict_server, "active") == 0, 10, "the first row is gone")
        assert said == []
        page.locator("#numbers").fill("1, 2")
        expect(page.get_by_role("alert")).to_contain_text("The input must be 4 numbers (got 2)")


def test_the_engine_page_shows_the_rows_of_now(browser: Browser, strict_server: RunningServer) -> None:
    with page_of(browser, f"{strict_server.url}/engine") as (page, said):
        with connection(strict_server, ENDLESS | {"inputs": [[0, 1, 2, 3]] * 4}):
            expect(page.locator("#rows-text")).to_have_text(re.compile(r"^2 of \d+ slots active, 2 waiting$"))
            expect(page.locator("#lane-slow-1 .active")).to_have_count(2)
            expect(page.locator("#lane-slow-1 .waiting")).to_have_count(2)
            expect(page.locator("#lanes .active")).to_have_count(2)  # of no other model
            expect(page.locator("#batch")).to_have_text("2", timeout=15_000)
            expect(page.locator("#iterations")).not_to_have_text("0")
        expect(page.locator("#lanes .active")).to_have_count(0)
        expect(page.locator("#models tr")).to_have_count(int(strict_server.metric("jfb_engine_versions")))
        assert said == []


def test_the_engine_page_counts_the_requests_of_each_model(browser: Browser, strict_server: RunningServer) -> None:
    def cells(model: str) -> list[str]:
        return page.locator("#requests-rows tr", has_text=model).locator("td").all_inner_texts()

    with page_of(browser, f"{strict_server.url}/engine") as (page, said):
        expect(page.locator("#idle")).to_be_visible()
        assert cells("slow")[2:6] == ["–", "–", "0", "0"]
        for _ in range(20):
            assert strict_server.predict({"inputs": [[0.0, 0.0]]}, "/models/wild/predict").status_code == 200
        with connection(strict_server, ENDLESS | {"inputs": [[0, 1, 2, 3]] * 4}):
            wait_until(lambda: rows(strict_server, "waiting") == 2, 10, "two rows wait")
            with connection(strict_server, ENDLESS | {"inputs": [[0, 1, 2, 3]] * 2}):
                wait_until(lambda: rows(strict_server, "waiting") == 4, 10, "the queue is full")
                busy = strict_server.predict({"inputs": [[0, 1, 2, 3]]}, "/models/slow/predict")
                assert busy.status_code == 429
        expect(page.locator("#idle")).to_be_hidden()
        wait_until(lambda: cells("slow")[4:6] == ["1", "0"], 10, "the page counts the 429")
        _, rate, median, highest, *_ = cells("wild")
        assert float(rate) > 0
        assert 0 < float(median.removesuffix(" ms")) <= float(highest.removesuffix(" ms"))
        assert said == []


def test_metrics_on_another_port_are_reported(browser: Browser, keyed_server: RunningServer) -> None:
    with page_of(browser, f"{keyed_server.url}/engine") as (page, _):
        expect(page.get_by_role("alert")).to_contain_text("another port")


def test_a_server_that_has_stopped_is_reported(browser: Browser, digits_server: RunningServer) -> None:
    with page_of(browser, digits_server.url) as (page, _):
        expect(page.locator("#said")).to_contain_text("iteration")
        page.route("**", lambda route: route.abort("connectionrefused"))
        set_slider(page, "tolerance", -2)
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        expect(page.locator("#reading")).to_be_hidden()
        expect(page.locator("#server")).to_have_text("Server away")


def test_on_a_phone_the_answer_stays_in_view_while_a_slider_moves(browser: Browser, digits_server: RunningServer) -> None:
    with page_of(browser, digits_server.url, viewport=PHONE, is_mobile=True, has_touch=True) as (page, _):
        expect(page.locator("#said")).to_contain_text("iteration")
        page.evaluate("document.getElementById('stop').scrollIntoView({ block: 'end' })")
        for place in ("#tolerance", "#cap", "#label", "#iterations", "#confidence"):
            expect(page.locator(place)).to_be_in_viewport(ratio=1)


def test_tables_scroll_on_a_phone_and_the_keyboard_reaches_them(browser: Browser, digits_server: RunningServer) -> None:
    with page_of(browser, f"{digits_server.url}/engine", viewport={"width": 360, "height": 740}) as (page, _):
        expect(page.locator("#models tr").first).to_be_visible()
        table = page.locator(".scroll").first
        table.focus()
        assert table.evaluate("(one) => one.scrollWidth > one.clientWidth")
        assert "gradient" in table.evaluate("(one) => getComputedStyle(one).backgroundImage")  # the cue
        page.keyboard.press("ArrowRight")
        wait_until(lambda: table.evaluate("(one) => one.scrollLeft") > 0, 5, "the table has scrolled")


@pytest.mark.parametrize("path", ["", "/engine", "/models/digits"])
def test_a_phone_need_not_scroll_sideways(browser: Browser, digits_server: RunningServer, path: str) -> None:
    with page_of(browser, digits_server.url + path, viewport=PHONE, is_mobile=True, has_touch=True) as (page, _):
        expect(
            page.locator({"": "#confidence", "/engine": "#models tr", "/models/digits": "#card h2"}[path]).first
        ).not_to_be_empty()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_trained_model_is_shown_with_its_card_its_plots_and_its_files(browser: Browser, digits_server: RunningServer) -> None:
    description = digits_server.client.get("/models/digits").json()
    with page_of(browser, f"{digits_server.url}/models/digits") as (page, said):
        expect(page.locator("#name")).to_have_text("digits")
        facts = page.locator("#facts")
        expect(facts).to_contain_text(f"{100 * description['metrics']['accuracy']:.2f}%")
        expect(facts).to_contain_text(f"{description['metrics']['parameters']:,}")
        expect(facts).to_contain_text("1 × 8 × 8 float32, 0 to 16")
        expect(page.locator("#classes")).to_have_text("10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9")
        for plot, curves in (("tolerance-plot", 2), ("loss-plot", 2), ("training-plot", 2)):
            expect(page.locator(f"#{plot} polyline")).to_have_count(curves)
        expect(page.locator("#card h3").first).to_have_text("What a tolerance costs")
        expect(page.locator("#card td", has_text="accuracy").first).to_be_visible()
        expect(page.locator("#card")).not_to_contain_text("library_name")
        with page.expect_download() as download:
            page.get_by_role("link", name="model.onnx").click()
        assert Path(download.value.path()).stat().st_size == description["files"]["model.onnx"]
        page.get_by_role("link", name="Try it").click()
        expect(page.locator("#said")).to_contain_text("iteration")
        expect(page.locator("#model")).to_have_value("digits")
        page.get_by_role("link", name="about").click()
        expect(page.locator("#name")).to_have_text("digits")
        assert said == []


def test_the_version_is_selected(browser: Browser, strict_server: RunningServer) -> None:
    with page_of(browser, f"{strict_server.url}/models/digits") as (page, said):
        expect(page.locator("#facts")).to_contain_text("20.00%")
        page.locator("#version").press("ArrowUp")
        expect(page.locator("#facts")).to_contain_text("10.00%")
        expect(page.locator("#version")).to_be_focused()
        assert page.url == f"{strict_server.url}/models/digits?version=1"
        expect(page.locator("#no-evaluation")).to_have_text("Not evaluated: run python -m training evaluate digits/1.")
        page.reload()
        expect(page.locator("#facts")).to_contain_text("10.00%")
        assert said == []


def test_an_alias_is_selected_as_a_version_is(browser: Browser, strict_server: RunningServer, store: Path) -> None:
    set_alias(store, "stable", ModelVersion("digits", 1))
    strict_server.client.post("/v2/repository/models/digits/load")  # scans the store; it also has a version that is refused
    with page_of(browser, f"{strict_server.url}/models/digits") as (page, said):
        expect(page.locator("#version option")).to_have_text(["1", "2 (latest)", "stable (version 1)"])
        expect(page.locator("#version")).to_have_value("2")
        page.locator("#version").select_option("stable")
        expect(page.locator("#facts")).to_contain_text("10.00%")
        assert page.url == f"{strict_server.url}/models/digits?version=stable"
        page.reload()
        expect(page.locator("#version")).to_have_value("stable")
        assert said == []
    remove_alias(store / "digits", "stable")
    strict_server.client.post("/v2/repository/models/digits/load")


def test_a_model_that_is_not_served_is_an_error(browser: Browser, strict_server: RunningServer) -> None:
    with page_of(browser, f"{strict_server.url}/models/digit") as (page, _):
        expect(page.get_by_role("alert")).to_contain_text("did you mean digits?")
        expect(page.locator("#model")).to_be_hidden()


@pytest.mark.long
def test_a_server_with_keys_requires_one_for_the_page_and_its_files(browser: Browser, digits_store: Path, tmp_path: Path) -> None:
    with (
        running_server(digits_store, tmp_path / "log", api_keys="secret") as running,
        page_of(browser, f"{running.url}/models/digits") as (page, _),
    ):
        expect(page.get_by_role("alert")).to_contain_text("This server requires an API key")
        page.locator("#key").fill("secret")
        page.locator("#key").press("Enter")
        expect(page.locator("#card h2")).to_have_text("digits", timeout=60_000)
        with page.expect_download() as download:
            page.get_by_role("link", name="model card").click()
        assert "# digits" in Path(download.value.path()).read_text()


def test_the_page_of_the_api_is_whole_without_another_host(browser: Browser, digits_server: RunningServer) -> None:
    with page_of(browser, f"{digits_server.url}/docs") as (page, said):
        expect(page.locator(".opblock-summary-path", has_text="/predict").first).to_be_visible()
        page.locator(".opblock").first.click()
        expect(page.get_by_role("button", name="Try it out").first).to_be_visible()
        for name, path in (("Playground", "/"), ("Engine", "/engine")):
            assert page.get_by_role("link", name=name).evaluate("(link) => link.href") == digits_server.url + path
        assert said == []


def test_pages_hold_no_script_but_their_own(digits_server: RunningServer) -> None:
    for path in ("/", "/engine", "/models/digits"):
        answer = digits_server.client.get(path, headers={"accept": "text/html"})
        assert answer.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-cache"
    assert digits_server.client.get("/static/nothing.js").status_code == 404
    assert digits_server.client.get("/static/../main.py").status_code == 404
    script = digits_server.client.get("/static/playground.js")
    assert "javascript" in script.headers["content-type"]
    again = digits_server.client.get("/static/playground.js", headers={"if-none-match": script.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.skipif("JFB_SCREENSHOTS" not in os.environ, reason="pictures are written when JFB_SCREENSHOTS names a folder")
def test_screenshots_for_the_documentation(browser: Browser, digits_server: RunningServer) -> None:
    folder = Path(os.environ["JFB_SCREENSHOTS"])
    screenshots = {
        "playground": {},
        "playground-light": {"color_scheme": "light"},
        "playground-phone": {"viewport": PHONE, "is_mobile": True, "has_touch": True, "device_scale_factor": 2},
    }
    for name, options in screenshots.items():
        with page_of(browser, digits_server.url, **options) as (page, _):
            expect(page.locator("#said")).to_contain_text("iteration")
            for digit in "0123456789":
                page.get_by_role("button", name=f"Sample: {digit}").click()
                expect(page.locator("#said")).to_contain_text(f"{digit} with")
            for power in np.linspace(-1, -5, 20):
                before = page.locator("#costs rect").count()
                set_slider(page, "tolerance", round(float(power), 1))
                expect(page.locator("#costs rect")).to_have_count(before + 1)
            page.locator("#clear").click()
            draw(page, THREE)
            expect(page.locator("#label")).to_have_text("3")
            expect(page.locator("#said")).to_contain_text("3 with")
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=folder / f"{name}.png", full_page=name != "playground-phone")  # a phone's is as much as it shows
    inputs = [one["input"] for one in digits_server.client.get("/models/digits/samples").json()]
    with page_of(browser, f"{digits_server.url}/engine") as (page, _):
        for k in range(24):
            many = [inputs[i % 10] for i in range(40 + 8 * (k % 7))]
            digits_server.predict({"inputs": many, "tolerance": list(10.0 ** np.linspace(-6, -1, len(many)))})
            page.wait_for_timeout(150)
        page.screenshot(path=folder / "engine.png", full_page=True)
