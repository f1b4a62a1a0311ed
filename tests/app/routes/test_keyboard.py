"""Every page with the keyboard alone: Tab reaches each control in reading order, and keys do what a mouse does."""

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.app.routes.browsing import PHONE, page_of
from tests.app.running import RunningServer

CONTROLS = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, [tabindex]")]
    .filter((one) => one.checkVisibility() && !one.disabled)"""
FOCUSED = f"""() => {{
    const focused = document.activeElement, ring = getComputedStyle(focused.closest(".button") ?? focused);
    const {{ left, top, bottom }} = (focused.closest(".button, label") ?? focused).getBoundingClientRect();
    return {{
        place: ({CONTROLS})().indexOf(focused),
        panel: (focused.closest(".panel, header") ?? document.body).outerHTML.slice(0, 80),
        ring: ring.outlineStyle === "none" ? 0 : parseFloat(ring.outlineWidth),
        left, top: top + scrollY, bottom: bottom + scrollY, inView: bottom > 0 && top < innerHeight,
    }};
}}"""
READY = {"": "#copies button:enabled", "/engine": "#models tr", "/models/digits": "#card h2"}


def press_until(page: Page, selector: str, key: str = "Tab") -> None:
    """Move the focus until it is on an element."""
    for _ in range(80):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{key} does not reach {selector}")


@pytest.mark.parametrize(
    ("path", "options"), [*((path, {}) for path in READY), ("", {"viewport": PHONE, "is_mobile": True, "color_scheme": "light"})]
)
def test_tab_reaches_every_control_in_reading_order(
    browser: Browser, digits_server: RunningServer, path: str, options: dict[str, object]
) -> None:
    with page_of(browser, digits_server.url + path, **options) as (page, said):
        expect(page.locator(READY[path]).first).to_be_visible()
        if path == "/engine":
            expect(page.locator("#idle")).to_be_visible()
        count = page.evaluate(f"({CONTROLS})().length")
        assert count > 5
        found = []
        for _ in range(count):
            page.keyboard.press("Tab")
            found.append(page.evaluate(FOCUSED))
        assert sorted(one["place"] for one in found) == list(range(count))
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body")  # and out of the page
        for before, one in zip([None, *found], found, strict=False):
            assert one["ring"] >= 2
            assert one["inView"]
            if before and (before["panel"] == one["panel"] or options):  # a phone shows the panels below each other
                below = one["top"] >= before["bottom"] - 2
                beside = one["bottom"] > before["top"] and one["left"] > before["left"]
                inside = one["top"] >= before["top"] and one["bottom"] <= before["bottom"]  # a link in a table that scrolls
                assert below or beside or inside, (before, one)
        for _ in range(count):
            page.keyboard.press("Shift+Tab")
        assert page.evaluate(FOCUSED)["place"] == found[0]["place"]
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        focusable = [
            one
            for one in tree
            if any(each["name"] == "focusable" and each["value"]["value"] for each in one.get("properties", []))
        ]
        nameless = [one["role"] for one in focusable if not one["name"]["value"] and one["role"]["value"] != "RootWebArea"]
        assert len(focusable) >= count
        assert nameless == []
        assert said == []


def test_keys_operate_every_control_of_the_playground(browser: Browser, digits_server: RunningServer, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with page_of(browser, digits_server.url) as (page, said):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.on("filechooser", lambda _: None)  # the browser must know that they are waited for before the first one opens
        answered = page.locator("#costs rect")
        expect(answered).to_have_count(1)
        press_until(page, "#pad")
        for key in ["Delete"] + ["ArrowUp"] * 8 + [" "] + ["ArrowDown"] * 16 + [" "]:
            page.keyboard.press(key)
        expect(page.locator("#label")).to_have_text("1")
        press_until(page, "#invert")
        before = page.evaluate("document.getElementById('pad').toDataURL()")
        page.keyboard.press("Enter")
        assert page.evaluate("document.getElementById('pad').toDataURL()") != before
        press_until(page, "#file")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        assert chooser.value.is_multiple()
        press_until(page, "[aria-label='Sample: 4']")
        page.keyboard.press("Space")
        expect(page.locator("#label")).to_have_text("4")
        for slider in ("tolerance", "cap"):
            press_until(page, f"#{slider}")
            value = page.locator(f"#{slider}-value")
            shown = value.inner_text()
            page.keyboard.press("ArrowLeft")
            expect(value).not_to_have_text(shown)
        press_until(page, "#solver")
        solver = page.locator("#solver").input_value()
        page.keyboard.press("ArrowDown")
        assert page.locator("#solver").input_value() != solver
        press_until(page, "#stop")
        page.keyboard.press("Space")
        expect(page.locator("#stop")).to_be_checked()
        expect(page.locator("#copies button").first).to_be_enabled()
        for format, start in (("curl", "curl "), ("python", "import json"), ("javascript", "const "), ("link", "http")):
            press_until(page, f"[data-format={format}]")
            page.keyboard.press("Enter")
            expect(page.locator("#copied")).to_contain_text("copied")
            page.wait_for_function("async (start) => (await navigator.clipboard.readText()).startsWith(start)", arg=start)
        press_until(page, "#heat-by")
        page.keyboard.press("ArrowDown")
        assert page.locator("#heat-by").input_value() == "change"
        press_until(page, "#folder")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        assert chooser.value.element.get_attribute("id") == "folder"
        press_until(page, "#images", "Shift+Tab")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files([tmp_path / "black.png", tmp_path / "black.png"])
        expect(page.locator("#batch-rows tr")).to_have_count(2)
        press_until(page, "#batch-csv")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert download.value.suggested_filename == "digits.csv"
        press_until(page, "#replay", "Shift+Tab")
        press_until(page, "a[href='engine']", "Shift+Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#models tr")).to_have_count(1)
        assert said == []


def test_what_has_the_focus_keeps_it(browser: Browser, digits_server: RunningServer) -> None:
    with page_of(browser, f"{digits_server.url}/engine") as (page, _):
        expect(page.locator("#models tr")).to_have_count(1)
        press_until(page, "#models a")
        digits_server.predict({"inputs": [[[[0] * 8] * 8]]})
        row = page.locator("#requests-rows")
        expect(row).not_to_contain_text("–")  # it was written again, and so was the focused one
        assert page.evaluate("document.activeElement.matches('#models a')")
        page.keyboard.press("Enter")
        expect(page.locator("#name")).to_have_text("digits")
    with page_of(browser, digits_server.url) as (page, _):
        page.evaluate("delete Navigator.prototype.clipboard")  # as in a page that was not loaded over TLS
        expect(page.locator("#copies button").first).to_be_enabled()
        press_until(page, "[data-format=python]")
        page.keyboard.press("Enter")
        expect(page.locator("#copied")).to_contain_text("Python copied")
        assert page.evaluate("document.activeElement.matches('[data-format=python]')")


def test_keys_operate_the_page_of_a_model(browser: Browser, digits_server: RunningServer) -> None:
    with page_of(browser, f"{digits_server.url}/models/digits") as (page, _):
        press_until(page, "a[download='model.onnx']")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert download.value.suggested_filename == "model.onnx"
        press_until(page, "#card [role=region]")
        expect(page.locator("#card [role=region]").first).to_have_accessible_name(re.compile("^Table: "))
        press_until(page, "#try", "Shift+Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_value("digits")
