"""A browser with a page, for the tests of the pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP = {"width": 1280, "height": 720}
PHONE = {"width": 390, "height": 844}
PROFILE: dict[str, object] = {"viewport": DESKTOP, "color_scheme": "dark"}


_profiles: dict[tuple[Browser, str], BrowserContext] = {}


@contextmanager
def page_of(browser: Browser, url: str, **options: object) -> Iterator[tuple[Page, list[str]]]:
    """A page in a tab of its own, with what its console says; it may request nothing except from its server."""
    origin = f"{url.partition('//')[0]}//{httpx.URL(url).netloc.decode()}/"
    page, said, requested = _profile(browser, origin, options).new_page(), [], []  # type: ignore[var-annotated]
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"pageerror: {error}"))
    page.on("request", lambda request: requested.append(request.url))
    try:
        page.goto(url)
        yield page, said
    finally:
        page.close()
    assert [one for one in requested if not one.startswith((origin, "blob:", "data:"))] == []


def _profile(browser: Browser, origin: str, options: dict[str, object]) -> BrowserContext:
    """The profile for some options, kept with one tab: the others share its cache and its process, which cost more than a page.

    The pages keep nothing in a profile except what ends with the tab.
    """
    key = browser, repr(options)
    if key not in _profiles:
        _profiles[key] = browser.new_context(**PROFILE | options)  # type: ignore[arg-type]
        _profiles[key].set_default_timeout(15_000)
        _profiles[key].new_page().goto(f"{origin}static/icon.svg")
    return _profiles[key]
