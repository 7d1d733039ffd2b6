"""The common style of pages, and plots as inline SVG in the page's colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bimact import fonts

# On the page each of these becomes the CSS variable --plot-NAME, so that dark mode has its own colours; the
# value here is what a plot falls back to when it is taken out of the page.
COLORS = {
    "ink": "#23272e",
    "grid": "#dde1e7",
    "policy": "#1d5fc2",
    "hold": "#b8590b",
    "mean": "#7b818b",
    "demo": "#9aa1ab",
    "val": "#0b7a5d",
    "kl": "#8a4bb0",
}
WIDTH = 5.0  # inches: 360 units of the SVG, so that 9 points can be read on a phone and in two columns
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a joint's name may have a $ in it
    "font.size": 9.2,
    "axes.titlesize": 9.6,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.2,
    "legend.fontsize": 9.2,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.5,
    "text.color": COLORS["ink"],
    "axes.labelcolor": COLORS["ink"],
    "axes.edgecolor": COLORS["ink"],
    "xtick.color": COLORS["ink"],
    "ytick.color": COLORS["ink"],
    "grid.color": COLORS["grid"],
}


def svg_plot(
    name: str,
    label: str,
    height: float,
    draw: Callable[[Axes], None],
    width: float = WIDTH,
    left: float | None = None,
) -> Markup:
    """Draw on fresh axes and return the SVG element.

    Args:
        name: unique on the page; it begins every id in the SVG.
        label: what a screen reader says of it.
        height: in inches.
        draw: puts the data on the axes.
        width: in inches.
        left: inches for the labels of the vertical axis, so that plots one below the other line up; None: as
            much as it takes.
    """
    with rc_context({**_STYLE, "font.family": fonts.families(), "svg.hashsalt": name}), warnings.catch_warnings():
        # The letters stay letters in the SVG, and the reader's browser has fonts of its own.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained" if left is None else None)
        if left is not None:
            figure.subplots_adjust(left / width, 0.26 / height, 1 - 0.06 / width, 1 - 0.24 / height)
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_for_page(file.getvalue(), name, label))


def _for_page(svg: str, name: str, label: str) -> str:
    """A file's SVG → an element for a page with others: own ids, the page's fonts and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    svg = re.sub(r"; font-family: [^;\"]*|font-family: [^;\"]*; ", "", svg)
    for color, value in COLORS.items():
        svg = svg.replace(value, f"var(--plot-{color}, {value})")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{escape(label)}" '
    return head + (view_box[0] if view_box else "") + svg[svg.index(">") :]


def plain(value: float, _: Any = None) -> str:
    return f"{value:.10g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}"


def plain_numbers(axes: Axes) -> None:
    """Ticks as plain numbers: matplotlib's own are in its mathematical notation, or hide a factor."""
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_major_formatter(plain)


def shorten(name: str) -> str:
    return fonts.shorten(name, head=12, tail=13)


def page_environment(folder: Path, **filters: Callable[..., Any]) -> Environment:
    """Templates of a folder, which may include `page_style.css`."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment
