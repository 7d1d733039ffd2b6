"""Names in plots: in the scripts that fonts are installed for, told where one is missing, and never a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib import font_manager

from bimact import fonts
from bimact.evaluation.page import svg_plot
from bimact.training.prediction_plot import prediction_figure
from bimact.training.tracking import _render

CHINESE, JAPANESE, KOREAN = "左臂_夹爪", "右手首_グリッパー", "손목_각도"
RARE = "ᶁᶄᶊ"  # which of matplotlib's own fonts STIXGeneral has, and DejaVu Sans has not


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process; a warning is an error."""
    monkeypatch.setattr(fonts, "_is_reported", False)
    clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    clear()


def clear() -> None:
    fonts.families.cache_clear()
    fonts._characters.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, *families: str) -> None:
    """Let these be the only fonts beside matplotlib's own."""
    monkeypatch.setattr(fonts, "_FAMILIES", families)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    clear()


def titles_of(names: list[str], title: str = "Step 3") -> tuple[list[str], np.ndarray]:
    """The titles of a prediction's panels, and its pixels."""
    values = np.zeros((5, len(names)))
    figure = prediction_figure(values, values, np.zeros(5, bool), names, title)
    return [axes.get_title(loc="left") for axes in figure.axes], _render(figure)


def svg_of(*names: str) -> str:
    return svg_plot("plot", "a plot", 2, lambda axes: axes.set_yticks(range(len(names)), names))


def test_a_character_comes_from_the_first_font_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "Not Installed", "STIXGeneral")
    assert fonts.families() == ("DejaVu Sans", "STIXGeneral")
    titles, pixels = titles_of([RARE])
    assert titles == [f"{RARE}, rad"] and capsys.readouterr().out == ""
    install(monkeypatch)
    assert (titles_of([RARE])[1] != pixels).any()


def test_without_a_font_it_is_reported_once_and_joints_are_numbered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch)
    titles, _ = titles_of([CHINESE, "left_waist", JAPANESE], title=KOREAN)
    assert titles == ["0: □□ □□, rad", "left waist, rad", "2: □□□ □□□□□, rad"]
    titles_of([KOREAN])
    assert capsys.readouterr().out == (
        "Note: no font here has 左臂夹爪: pictures of predictions show □ instead; `apt-get install fonts-noto-cjk` "
        "brings Chinese, Japanese and Korean ones\n"
    )


def test_other_scripts_have_no_advice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch)
    assert titles_of(["ข้อ"])[0][0].startswith("0: ")
    assert capsys.readouterr().out == "Note: no font here has ข้อ: pictures of predictions show □ instead\n"


def test_an_svg_keeps_its_letters_whatever_fonts_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The browser has fonts of its own; names of fonts are left to the page."""
    for families in ((), ("STIXGeneral",)):
        install(monkeypatch, *families)
        svg = svg_of(CHINESE, JAPANESE, KOREAN, RARE)
        assert all(f">{name}</text>" in svg for name in (CHINESE, JAPANESE, KOREAN, RARE))
        assert "STIX" not in svg and "DejaVu" not in svg and "font-family" not in svg
    assert capsys.readouterr().out == ""


def test_fonts_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Debian's fonts-noto-cjk, or another font with all three scripts."""
    if len(fonts.families()) == 1 or any(fonts.drawable(name) != name for name in (CHINESE, JAPANESE, KOREAN)):
        pytest.skip("no font for Chinese, Japanese and Korean is installed (apt-get install fonts-noto-cjk)")
    titles, _ = titles_of([CHINESE, JAPANESE, KOREAN])
    assert titles == ["左臂 夹爪, rad", "右手首 グリッパー, rad", "손목 각도, rad"]
    assert capsys.readouterr().out == ""


def test_fonts_that_were_installed_after_matplotlib_was_used_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = font_manager.findfont("STIXGeneral")
    broken = tmp_path_factory.mktemp("fonts") / "broken.ttf"
    broken.write_bytes(b"no font")
    before = list(font_manager.fontManager.ttflist)
    others = [font for font in before if font.name != "STIXGeneral"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", others)
    install(monkeypatch, "STIXGeneral")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(broken), path])
    assert fonts.families() == ("DejaVu Sans", "STIXGeneral")
    assert fonts.drawable(RARE) == RARE


def test_names_are_no_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["$x$", "a_{b}^2", r"$\frac$", "$", r"\alpha"]
    titles, _ = titles_of(names, title="$y$")
    assert titles == ["$x$, rad", "a {b}^2, rad", r"$\frac$, rad", "$, rad", r"\alpha, rad"]
    figure = prediction_figure(np.zeros((5, 5)), np.zeros((5, 5)), np.zeros(5, bool), names, "$y$")
    texts = [*(axes.title for axes in figure.axes), *(axes._left_title for axes in figure.axes), figure._suptitle]
    assert not any(text.get_parse_math() for text in texts if text.get_text())
    assert all(f">{name}</text>" in svg_of(*names) for name in names)


def test_long_names_lose_their_middle() -> None:
    assert fonts.shorten("left_wrist_angle", 12, 13) == "left_wrist_angle"
    assert fonts.shorten("a" * 26, 12, 13) == "a" * 26
    assert fonts.shorten("a" * 20 + "b" * 20, 12, 13) == "a" * 12 + "…" + "b" * 13
    assert fonts.shorten("左" * 13, 12, 13) == "左" * 13
    assert fonts.shorten("左" * 14, 12, 13) == "左" * 6 + "…" + "左" * 6
    assert fonts.shorten("a" * 30, 0, 5) == "…aaaaa"
