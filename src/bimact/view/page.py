"""The page itself: one file with its scripts and styles, for the server and for `--export`."""

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
        name: the dataset's, for the title.
        embedded: what a server would answer, by path, for a page that stands alone; None: a server answers.

    Returns:
        the page, and its content security policy. Whatever a dataset's names hold, only scripts and styles with this
        page's own random number run, and nothing is loaded from elsewhere.
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    page = (
        page_environment(_FOLDER)
        .get_template("page.html")
        .render(
            name=name,
            nonce=nonce,
            policy=policy,
            styles=[_read(file) for file in _STYLES],
            scripts=[_license("vendor/uplot/LICENSE"), *(_read(file) for file in _SCRIPTS)],
            embedded=Markup(_json_in_script(embedded)),
        )
    )
    return page, policy


def _read(file: str) -> Markup:
    return Markup((_FOLDER / file).read_text())


def _license(file: str) -> Markup:
    """As a comment: whoever gets the page has it too."""
    return Markup(f"/*\n{_read(file)}*/")


def _json_in_script(content: Any) -> str:
    """JSON that no text in it can end the script element of."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")
