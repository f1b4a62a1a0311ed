"""The page of a model, in a real browser."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.app.routes.browsing import page_of
from tests.app.running import RunningServer, running_server


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


def test_the_version_is_selected(browser: Browser, server: RunningServer) -> None:
    with page_of(browser, f"{server.url}/models/digits") as (page, said):
        expect(page.locator("#facts")).to_contain_text("20.00%")
        page.locator("#version").select_option("1")
        expect(page.locator("#facts")).to_contain_text("10.00%")
        assert page.url == f"{server.url}/models/digits?version=1"
        expect(page.locator("#no-evaluation")).to_have_text("Not evaluated: run python -m training evaluate digits/1.")
        page.reload()
        expect(page.locator("#facts")).to_contain_text("10.00%")
        assert said == []


def test_a_model_that_is_not_served_is_an_error(browser: Browser, server: RunningServer) -> None:
    with page_of(browser, f"{server.url}/models/digit") as (page, _):
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
