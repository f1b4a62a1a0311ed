"""MkDocs hooks: add results from benchmarks/, render the notebook, typeset the mathematics."""

import base64
import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the results with their pictures and tables, the app's icon, and a page for each notebook."""
    for path in sorted((ROOT / "benchmarks").rglob("*")):
        if path.suffix in (".md", ".png", ".csv"):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV))
    files.append(File.generated(config, "icon.svg", abs_src_path=str(ROOT / "app" / "static" / "icon.svg")))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=_notebook(file)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to benchmarks/: in the repository the folder is next to docs/, in the site it is inside."""

    def in_site(match: re.Match[str]) -> str:
        uri = page.file.src_uri
        here = posixpath.dirname(uri if uri.startswith("benchmarks/") else f"docs/{uri}")
        target = posixpath.normpath(posixpath.join(here, match[1]))
        if target.startswith(("docs/", "benchmarks/")):
            return f"]({posixpath.relpath(target.removeprefix('docs/'), posixpath.dirname(uri) or '.')}{match[2] or ''})"
        return match[0]

    return re.sub(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)", in_site, markdown)


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas as MathML, which browsers typeset themselves: no script, and nothing from elsewhere."""
    content = re.sub(
        r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>',
        lambda match: convert(html.unescape(match[1].strip()), display="block"),
        content,
        flags=re.DOTALL,
    )
    return re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>',
        lambda match: convert(html.unescape(match[1])),
        content,
        flags=re.DOTALL,
    )


def _notebook(file: File) -> str:
    """A notebook as Markdown, its pictures inside, with a way to download it."""
    markdown, resources = MarkdownExporter().from_filename(file.abs_src_path)
    for name, picture in resources["outputs"].items():
        markdown = markdown.replace(f"]({name})", f"](data:image/png;base64,{base64.b64encode(picture).decode()})")
    return f"{markdown}\n[This page as a notebook]({posixpath.basename(file.src_uri)})\n"
