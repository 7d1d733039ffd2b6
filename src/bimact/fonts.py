"""Names in plots: in any script that this machine has a font for, shortened to the space they have."""

from __future__ import annotations

import functools
import unicodedata

from matplotlib import font_manager

# Matplotlib's own font comes first. It has Latin, Greek, Cyrillic, Arabic and Hebrew letters. For each character that
# it lacks, matplotlib takes the first of these that has it.
_OWN = "DejaVu Sans"
_FAMILIES = (
    *(f"Noto Sans CJK {region}" for region in ("SC", "JP", "KR", "TC", "HK")),
    *("Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Noto Sans TC"),
    *("Source Han Sans", "Source Han Sans SC", "Source Han Sans CN", "Source Han Sans JP", "Source Han Sans K"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic"),
    *("NanumGothic", "UnDotum"),
    *("PingFang SC", "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo", "AppleGothic", "Heiti TC", "STHeiti"),
    *("Microsoft YaHei", "Microsoft JhengHei", "Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic", "Gulim"),
    *("SimHei", "SimSun", "Droid Sans Fallback", "Arial Unicode MS", "Unifont"),
)
ABSENT = "□"  # replaces a character that no font has
_is_reported = False


@functools.cache
def families() -> tuple[str, ...]:
    """The fonts of plots, for `font.family`: those of a list that are installed."""
    manager = font_manager.fontManager
    if not {font.name for font in manager.ttflist} & set(_FAMILIES):
        # Matplotlib knows the fonts that were installed when it was first used: look for later ones.
        known = {font.fname for font in manager.ttflist}
        for path in sorted(set(font_manager.findSystemFonts()) - known):
            try:
                manager.addfont(path)
            except (OSError, RuntimeError, ValueError):  # a bitmap font, or a damaged one
                continue
    installed = {font.name for font in manager.ttflist}
    return (_OWN, *(name for name in _FAMILIES if name in installed))


@functools.cache
def _characters() -> frozenset[int]:
    """The characters that the fonts of plots have."""
    files = [font_manager.findfont(font_manager.FontProperties(family=[name])) for name in families()]
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def drawable(text: str) -> str:
    """A text for a pixel image: a character without a font becomes an empty box, which is reported once.

    An SVG does not need this, since it is drawn with the fonts of the browser.
    """
    global _is_reported
    absent = [letter for letter in dict.fromkeys(text) if letter.isprintable() and ord(letter) not in _characters()]
    if absent and not _is_reported:
        _is_reported = True
        is_wide = any(unicodedata.east_asian_width(letter) == "W" for letter in absent)
        advice = "; `apt-get install fonts-noto-cjk` brings Chinese, Japanese and Korean ones" if is_wide else ""
        print(
            f"Note: no font here has {''.join(absent)[:20]}: pictures of predictions show {ABSENT} instead{advice}",
            flush=True,
        )
    return "".join(ABSENT if letter in absent else letter for letter in text)


def shorten(text: str, head: int, tail: int) -> str:
    """A text that is too wide, without its middle. Widths are in Latin letters; a Chinese one counts twice.

    Args:
        text: such as a joint's name.
        head: width that is kept of its beginning.
        tail: width that is kept of its end.
    """
    if _width(text) <= head + 1 + tail:
        return text
    begin, end = text, text
    while _width(begin) > head:
        begin = begin[:-1]
    while _width(end) > tail:
        end = end[1:]
    return f"{begin}…{end}"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
