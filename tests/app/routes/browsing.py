"""A browser with a page of a fresh profile, for the tests of the pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP = {"width": 1280, "height": 720}
PHONE = {"width": 390, "height": 844}


@contextmanager
def page_of(browser: Browser, url: str, **options: object) -> Iterator[tuple[Page, list[str]]]:
    """A page of a fresh profile, with what its console says; it may request nothing except from its server."""
    context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "dark"} | options)  # type: ignore[arg-type]
    context.set_default_timeout(15_000)
    page, said, requested = context.new_page(), [], []  # type: ignore[var-annotated]
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"pageerror: {error}"))
    page.on("request", lambda request: requested.append(request.url))
    try:
        page.goto(url)
        yield page, said
    finally:
        context.close()
    origin = f"{url.partition('//')[0]}//{httpx.URL(url).netloc.decode()}/"
    assert [one for one in requested if not one.startswith((origin, "blob:", "data:"))] == []
