"""The documentation site: it builds without a warning, lists every page, and has no broken link, and works offline."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from pages import ROOT


class Links(HTMLParser):
    """Anchors of a page; what it links, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(filter(None, (values.get("id"), values.get("name"))))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("img", "script", "source", "video", "iframe") and values.get("src"):
            self.loaded.append(values["src"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    pytest.importorskip("furo", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    [recipe] = re.findall(
        r"^docs: .*\n\t\$\(BIN\)/python (-m sphinx .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    arguments = recipe.replace("build/doctrees", f"{folder}/doctrees").replace("build/site", f"{folder}/html").split()
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / "html"


def broken_links(site: Path) -> Iterator[str]:
    pages = {path: Links(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            file, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", file):
                if link in page.loaded and not file.startswith("data:"):
                    yield f"{path.name} loads {link} from elsewhere"
                continue
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not target.is_file():
                yield f"{path.name}: {link}"
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{path.name}: {link} has no such anchor"


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    assert (site / "searchindex.js").is_file()
    assert "docs/index.html" in (site / "index.html").read_text()
    assert list(broken_links(site)) == []
    page = site / "docs" / "install.html"
    page.write_text(page.read_text() + '<a href="nowhere.html"></a><img src="https://example.org/a.png">')
    assert len(list(broken_links(site))) == 2


def test_the_index_lists_every_page_once() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    listed = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    pages = {path.name for path in (ROOT / "docs").glob("*") if path.suffix in (".md", ".rst")} - {"index.md"}
    assert pages <= set(listed)


def test_pictures_are_used_and_small() -> None:
    text = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md")) + (ROOT / "README.md").read_text()
    text += "".join(
        f"images/{path.stem}.svg" for path in (ROOT / "docs").glob("*.md") if "```mermaid" in path.read_text()
    )
    pictures = [path for path in (ROOT / "docs" / "images").iterdir() if path.is_file()]
    assert [path.name for path in pictures if f"images/{path.name}" not in text] == []
    assert sum(path.stat().st_size for path in pictures) < 7e6  # with the README's moving picture


def test_spelling() -> None:
    files = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    command = [sys.executable, "-m", "codespell_lib", *map(str, files)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout + result.stderr == ""
