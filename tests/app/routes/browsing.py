"""A browser with a page, for the tests of the pages."""

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
PROFILE: dict[str, object] = {"viewport": DESKTOP, "color_scheme": "dark"}


@contextmanager
def page_of(browser: Browser, url: str, **options: object) -> Iterator[tuple[Page, list[str]]]:
    """A page in a tab of its own, with what its console says; it may request nothing except from its server.

    Without options the tabs share the browser's first profile, because filling the cache of a fresh one takes as long as the
    page; the pages keep nothing there except what ends with the tab.
    """
    context = browser.new_context(**PROFILE | options) if options else browser.contexts[0]  # type: ignore[arg-type]
    context.set_default_timeout(15_000)
    page, said, requested = context.new_page(), [], []  # type: ignore[var-annotated]
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"pageerror: {error}"))
    page.on("request", lambda request: requested.append(request.url))
    try:
        page.goto(url)
        yield page, said
    finally:
        if options:
            context.close()
        else:
            page.close()
    origin = f"{url.partition('//')[0]}//{httpx.URL(url).netloc.decode()}/"
    assert [one for one in requested if not one.startswith((origin, "blob:", "data:"))] == []
