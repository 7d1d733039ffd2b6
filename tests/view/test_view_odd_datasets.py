"""The page on datasets that are large, odd, damaged or hostile, and as a file that needs no server."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from numbered_source import NumberedSource, numbered_source
from viewing import SOURCE, Page, assert_all_show, command, served

from bimact.check.findings import Finding
from bimact.check.kinds import ERROR
from bimact.data.source import Camera, Unusable
from bimact.view.export import export_page

HOSTILE = '"><script>document.title="run"</script><img src=x onerror=document.title="run">'


@pytest.fixture
def page(browser: Browser) -> Page:
    return Page(browser)


def test_plots_without_cameras_play_by_a_clock(page: Page, tmp_path: Path) -> None:
    source = numbered_source([30], cameras=())
    with served(source, tmp_path) as server:
        page.open(server.address)
        page.press(" ")
        page.wait_for("document.querySelector('#clock b').textContent == '29'")
        page.wait_for("document.querySelector('#play').getAttribute('aria-label') == 'Play'")
        assert_all_show(page, 29, source)


def test_ten_thousand_episodes_are_a_list_of_some_rows(page: Page, tmp_path: Path) -> None:
    source = numbered_source([7] * 9_999 + [40], cameras=(), size=2, names=None)
    with served(source, tmp_path) as server:
        page.open(server.address)
        assert page.text("#episode-count") == "10,000 episodes"
        assert page.evaluate("document.querySelectorAll('.row').length") < 40
        page.evaluate("document.querySelector('#episode-list').scrollTop = 1e9")
        page.wait_for("document.querySelector('#episode-9999')")
        assert page.evaluate("document.querySelectorAll('.row').length") < 40
        page.press("/")
        for key in "512":
            page.press(key)
        page.wait_for("document.querySelector('#episode-count').textContent == '20 of 10,000 episodes'")
        assert page.evaluate("document.querySelector('.row').id") == "episode-512"
        page.evaluate("document.querySelector('#filter').value = ''")
        page.evaluate("document.querySelector('#order').value = 'longest'")
        page.evaluate("document.querySelector('#order').dispatchEvent(new Event('change'))")
        assert page.evaluate("document.querySelector('.row').id") == "episode-9999"


def test_a_long_episode_is_shown_whole_and_in_part(page: Page, tmp_path: Path) -> None:
    source = numbered_source([10_000], cameras=())
    with served(source, tmp_path) as server:
        page.open(f"{server.address}#step=9000")
        assert_all_show(page, 9000, source)
        page.press("+")
        page.press("+")
        assert page.line() == pytest.approx((9000 - 7499.25) / 2499.75, abs=0.005)
        page.press("Home")
        assert page.line() == pytest.approx(0, abs=0.005)
        page.click('[aria-label^="left_waist"] .u-over', 1.0)
        assert page.step == pytest.approx(2500, abs=20)


def test_what_a_dataset_does_not_tell_is_said(page: Page, tmp_path: Path) -> None:
    source = numbered_source([20], cameras=("top",), names=None, fps=None)
    source = dataclasses.replace(
        source, columns={**source.columns, "action": dataclasses.replace(source.columns["action"], size=3)}
    )
    with served(source, tmp_path) as server:
        page.open(f"{server.address}#step=7")
        page.wait_for_frames(7, 0)
        assert page.times() == [7.5 / 50] and len(page.frames()) == 1
        assert "unknown fps: 50 assumed" in page.text("#facts")
        titles = page.evaluate("[...document.querySelectorAll('.plot b')].map(title => title.textContent)")
        assert titles == [*(f"state {n}" for n in range(14)), *(f"action {n}" for n in range(3))]


def test_a_camera_that_cannot_be_read_says_so_beside_the_others(page: Page, tmp_path: Path) -> None:
    source = numbered_source(broken_camera="top")
    with served(source, tmp_path) as server:
        page.open(server.address)
        assert "episode 0: camera top has no image at step 3" in page.text(".camera .note")
        page.press("ArrowRight")
        page.wait_for_frames(1, 1)


def test_nan_is_a_gap_with_a_word(page: Page, tmp_path: Path) -> None:
    with served(WithNan(**vars(numbered_source([20], cameras=()))), tmp_path) as server:
        page.open(f"{server.address}#step=4")
        values = page.evaluate("[...document.querySelectorAll('.plot .value')].slice(0, 2).map(v => v.textContent)")
        assert values[0] == "none" and float(values[1].replace("\u2212", "-")) == pytest.approx(
            np.sin(9 / 20), abs=0.01
        )
        page.click("#show-distributions")
        page.wait_for("document.querySelector('.facts .bad')?.textContent.includes('1 value NaN or infinite')")


class WithNan(NumberedSource):
    def vectors(self, episode: int, key: str) -> np.ndarray:
        values = super().vectors(episode, key)
        if key == "state":
            values[4, 0] = np.nan
        return values


def test_names_from_the_dataset_are_text(page: Page, tmp_path: Path) -> None:
    names = tuple(f"{HOSTILE}{number}" for number in range(14))
    source = numbered_source(cameras=[HOSTILE], names=names, task=HOSTILE)
    source = dataclasses.replace(
        source,
        path=Path(f"/x/{HOSTILE.replace('/', '')}"),
        unusable=(Unusable(9, HOSTILE, HOSTILE, is_missing=True),),
        format=HOSTILE,
    )
    finding = Finding("unreadable", HOSTILE, ERROR, episode=0, step=3)
    with served(source, tmp_path / "videos", [finding]) as server:
        page.open(server.address)
        page.wait_for("document.querySelector('.finding')")
        assert_hostile_names_are_text(page, len(source.episodes))
        assert page.text(".finding .sentence") == HOSTILE
    export_page(source, 0, tmp_path / "page.html", 640)
    page.open((tmp_path / "page.html").as_uri())
    assert_hostile_names_are_text(page, 1)


def assert_hostile_names_are_text(page: Page, episodes: int) -> None:
    page.wait_for_frames(0, 0)
    assert len(page.frames()) == 1
    assert page.text("#task") == HOSTILE and page.text(".camera figcaption") == HOSTILE
    assert page.text(".plot figcaption b") == f"{HOSTILE}0"
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("document.title") != "run"
    assert page.evaluate("document.querySelectorAll('.row').length") == episodes


@pytest.mark.slow
def test_a_server_that_has_ended_is_told(page: Page, dataset: Path) -> None:
    with command(dataset) as (process, address):
        page.open(address)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    page.press("n")
    page.wait_for("!document.querySelector('#problem').hidden")
    assert "is `bimact view` still running?" in page.text("#problem")


def test_an_exported_page_needs_no_server(page: Page, tmp_path: Path) -> None:
    source = dataclasses.replace(SOURCE, cameras={"top": Camera(120, 224), "a b/c%": Camera(120, 224)})
    export_page(source, 2, tmp_path / "page.html", 100)
    page.open(f"{(tmp_path / 'page.html').as_uri()}#step=33")
    assert_all_show(page, 33, source, episode=2)
    assert page.evaluate("[...document.querySelectorAll('video')].map(video => video.videoWidth)") == [100, 100]
    page.click("#step", 0.5)
    assert_all_show(page, page.step, source, episode=2)
    page.press("n")
    assert "Episode 2" in page.text("#episode-title")
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('blob:')).length") == 0
    )
