"""Make the pictures of the documentation, in docs/images, from the current build.

    python docs/make_images.py                    # all of them
    python docs/make_images.py view report        # some of them

It needs Chromium and, for `report`, the run of `make demo`; `diagram` needs the script of the package mermaid of npm:

    npm pack mermaid@11 && tar xf mermaid-11*.tgz && python docs/make_images.py diagram --mermaid package/dist/mermaid.min.js
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser, find_chromium  # noqa: E402

IMAGES = ROOT / "docs" / "images"
DESKTOP = 1100


class Studio:
    """Chromium, and a temporary directory for what is photographed."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        executable = find_chromium()
        if executable is None:
            sys.exit("make_images needs Chromium: install the package chromium of the system")
        self.options = options
        self.folder = folder
        self.browser = Browser(executable, folder / "profile")

    def page(self, html: str) -> None:
        path = self.folder / "page.html"
        path.write_text(html)
        self.browser.open(path, DESKTOP)


def diagram(studio: Studio) -> None:
    """The diagram of docs/architecture.md as SVG."""
    if studio.options.mermaid is None:
        sys.exit("the diagram needs --mermaid PATH/mermaid.min.js")
    source = re.search(
        r"^```mermaid\n(.*?)^```$", (ROOT / "docs/architecture.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert source is not None, "docs/architecture.md has no diagram"
    script = Path(studio.options.mermaid).absolute().as_uri()
    studio.page(f'<!doctype html><meta charset="utf-8"><script src="{script}"></script><body>')
    studio.browser.wait_for("typeof mermaid == 'object'")
    settings = {"startOnLoad": False, "theme": "neutral", "fontFamily": "sans-serif", "htmlLabels": False}
    settings["flowchart"] = {"htmlLabels": False, "useMaxWidth": False}
    text = json.dumps(re.sub("</?b>", "", source[1]).replace("flowchart LR", "flowchart TB"))  # as wide as a page
    svg = studio.browser.evaluate(
        f"(mermaid.initialize({json.dumps(settings)}), mermaid.render('d', {text}).then(result => result.svg))"
    )
    (IMAGES / "architecture.svg").write_text(svg + "\n")


PICTURES: dict[str, Callable[[Studio], None]] = {function.__name__: function for function in (diagram,)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the documentation.")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=f"of {', '.join(PICTURES)}; default: all")
    parser.add_argument("--mermaid", help="script of the package mermaid of npm, for the diagram")
    options = parser.parse_args()
    unknown = set(options.pictures) - PICTURES.keys()
    if unknown:
        parser.error(f"no picture named {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bimact-images-") as folder:
        studio = Studio(options, Path(folder))
        for name in options.pictures or PICTURES:
            PICTURES[name](studio)
            print(f"{name}: done", flush=True)
        studio.browser.close()


if __name__ == "__main__":
    main()
