"""The page: one file with its scripts and styles, for the server and for `--export`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bimact.evaluation.page import page_environment

_FOLDER = Path(__file__).parent
_SCRIPTS = (
    "vendor/uplot/uPlot.iife.min.js",
    "base.js",
    "player.js",
    "plots.js",
    "episodes.js",
    "findings.js",
    "distributions.js",
    "main.js",
)
_STYLES = ("vendor/uplot/uPlot.min.css", "../evaluation/page_style.css", "view.css")


def render_page(name: str, embedded: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """The page on a dataset.

    Args:
        name: of the dataset, for the title.
        embedded: the server's answers by path, for a page without a server; None: a server answers.

    Returns:
        the page, and its content security policy: whatever the names in a dataset contain, only scripts and styles with
        this page's random number run, and nothing is loaded from other sites.
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    template = page_environment(_FOLDER).get_template("page.html")
    page = template.render(
        name=name,
        nonce=nonce,
        policy=policy,
        styles=[_read(file) for file in _STYLES],
        # The licence is part of the page, as a comment.
        scripts=[Markup(f"/*\n{_read('vendor/uplot/LICENSE')}*/"), *(_read(file) for file in _SCRIPTS)],
        # No text in the JSON may end its script element.
        embedded=Markup(json.dumps(embedded, allow_nan=False).replace("<", "\\u003c")),
    )
    return page, policy


def _read(file: str) -> Markup:
    return Markup((_FOLDER / file).read_text())
