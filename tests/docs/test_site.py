"""The documentation builds without a warning and loads nothing from other hosts; its notebooks run."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {"fixed_points": "iterations together:", "mazes": "iterations and flood depth:"}
"""With words of their output."""
LOADING = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
}
"""Attributes with which a page makes a browser load something without a click."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; in strict mode a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    return folder


class Page(HTMLParser):
    """The addresses that a page loads without a click, and its number of formulas."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.formulas = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        address = found.get(LOADING.get(tag, ""))
        if address and not (tag == "link" and found.get("rel") in ("canonical", "prev", "next")):
            self.loads.append(address)
        self.formulas += tag == "math"


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for path in pages:
        loads = Page(path.read_text()).loads
        assert loads
        assert [address for address in loads if re.match(r"(https?:)?//", address)] == [], path
    for path in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", path.read_text()) == [], path


def test_formulas_are_typeset(site: Path) -> None:
    for name in ("fixed_points", "gradients"):
        text = (site / "mathematics" / name / "index.html").read_text()
        assert Page(text).formulas > 10
        assert "arithmatex" not in text


def test_the_reference_has_the_docstrings_and_the_results_are_there(site: Path) -> None:
    reference = (site / "reference" / "jfb" / "index.html").read_text()
    assert 'id="jfb.solution.solve"' in reference
    assert "a number, or one per row" in reference
    assert (site / "benchmarks" / "comparison" / "digits" / "comparison.png").exists()
    assert "Iterations against tolerance" in (site / "benchmarks" / "results" / "tolerance" / "index.html").read_text()


def test_the_notebooks_are_pages_with_their_pictures(site: Path) -> None:
    for name, words in NOTEBOOKS.items():
        page = (site / name / "index.html").read_text()
        assert page.count("data:image/png;base64,") == 2
        assert words in page
        assert (site / f"{name}.ipynb").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["fixed_points", pytest.param("mazes", marks=pytest.mark.long)])  # which trains
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    """Its claims are assertions, so running is checking."""
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(tmp_path)]
    ran = subprocess.run([*command, str(ROOT / "docs" / f"{name}.ipynb")], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert NOTEBOOKS[name] in (tmp_path / f"{name}.ipynb").read_text()
