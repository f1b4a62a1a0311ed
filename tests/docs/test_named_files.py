"""The pages name files of this repository that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
FILE = re.compile(r"\b((?:app|benchmarks|commandline|docker|docs|jfb|tests|training)/[\w./-]+\.(?:md|png|py|sh|yaml))\b")


def test_every_file_that_a_page_names_exists() -> None:
    named = {(str(page.relative_to(ROOT)), file) for page in PAGES for file in FILE.findall(page.read_text())}
    assert len(named) > 50
    assert [(page, file) for page, file in sorted(named) if not (ROOT / file).exists()] == []
