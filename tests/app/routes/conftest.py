"""One browser per file, for the tests of the pages, and a server of models that no other server has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.app.routes import test_label_stops, test_monotone, test_onnx
from tests.app.routes.browsing import CHROMIUM, FLAGS
from tests.app.running import RunningServer, running_server
from tests.conftest import NO_BROWSER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a browser before their servers are started."""
    if CHROMIUM is None:
        for item in items:
            if "browser" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=NO_BROWSER))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed with its module, since Playwright keeps an event loop in this thread as long as it runs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def special_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with what several files of this folder add."""
    store = tmp_path_factory.mktemp("special") / "store"
    for file in (test_label_stops, test_monotone, test_onnx):
        file.add_models(store)
    return store


@pytest.fixture(scope="session")
def special_server(special_store: Path) -> Iterator[RunningServer]:
    """A server of that store, with fewer slots than the tests send rows, ready."""
    with running_server(special_store, special_store.parent / "log", default_model="anybodys", slots=5) as running:
        running.wait_until_ready()
        yield running
