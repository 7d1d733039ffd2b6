"""The documentation site: `make docs` builds it from docs/, and from the other pages that docs/index.md lists.

The source directory is the project's root, so that links between pages are the same on the site as in the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

from bimact import __version__

ROOT = Path(__file__).parents[1]
INDEX = "docs/index"
LINK = re.compile(r"^- \[(?P<title>[^\]]+)\]\((?P<page>[^)#]+)\.(?:md|rst)\)", re.MULTILINE)
DIAGRAM = re.compile(r"^```mermaid\n.*?^```$", re.DOTALL | re.MULTILINE)


def listed_pages() -> list[str]:
    """Pages that docs/index.md lists, relative to the root and without extension, in its order."""
    links = LINK.finditer((ROOT / f"{INDEX}.md").read_text())
    return [(ROOT / "docs" / link["page"]).resolve().relative_to(ROOT).as_posix() for link in links]


def read_page(app: Sphinx, name: str, content: list[str]) -> None:
    """Navigation from the index's lists; diagrams as pictures, since a page must not load a script from elsewhere."""
    text = content[0]
    if name == INDEX:
        sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
        for number, section in enumerate(sections):
            lines = [f"{link['title']} <{link['page']}>" for link in LINK.finditer(section)]
            if lines:
                caption = section.partition("\n")[0].removeprefix("## ")
                tree = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```"]
                sections[number] = f"{section}\n" + "\n".join(tree) + "\n\n"
        text = "".join(sections)
    title = text.partition("\n")[0].removeprefix("# ")
    content[0] = DIAGRAM.sub(f"![{title}, as a diagram](images/{Path(name).name}.svg)", text)


def write_redirect(app: Sphinx, error: Exception | None) -> None:
    """The site's address without a page leads to the index."""
    if error is None and app.builder.format == "html":
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={INDEX}.html">'
        (Path(app.outdir) / "index.html").write_text(f'{page}<title>bimact</title><a href="{INDEX}.html">bimact</a>\n')


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_page)
    app.connect("build-finished", write_redirect)


project = "bimact"
author = copyright = "The bimact developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = INDEX
_pages = listed_pages()
include_patterns = [f"{INDEX}.md", *(f"{page}.*" for page in _pages)]
_folders = {Path(page).parts[0] for page in [INDEX, *_pages]}
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in _folders]
suppress_warnings = ["misc.highlighting_failure", "config.cache"]

myst_heading_anchors = 4  # headings have the anchors that GitHub gives them
myst_enable_extensions = ["attrs_block"]

default_role = "code"  # single backticks in docstrings
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"bimact {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp"
