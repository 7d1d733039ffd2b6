"""The page in a real browser: what videos, plots, values and scrubber show is the same step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CONTRAST, Browser
from numbered_source import JOINTS, numbered_source
from viewing import SOURCE, Page, assert_all_show, served

from bimact.check.findings import Finding
from bimact.check.kinds import ERROR, WARNING
from bimact.view.server import ViewServer

FINDINGS = (
    Finding("unreadable", "the whole dataset is odd", WARNING),
    Finding("unreadable", "episode 1, step 30: something is wrong", ERROR, episode=1, step=30),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewServer]:
    with served(SOURCE, tmp_path_factory.mktemp("view"), FINDINGS) as server:
        yield server


@pytest.fixture
def page(browser: Browser) -> Page:
    return Page(browser)


@pytest.fixture
def opened(page: Page, server: ViewServer) -> Page:
    page.open(server.address)
    return page


# Time ------------------------------------------------------------------------------------------------


def test_the_address_gives_episode_and_step(page: Page, server: ViewServer) -> None:
    page.open(f"{server.address}#episode=2&step=61")
    assert_all_show(page, 61, episode=2)
    assert "Episode 2" in page.text("#episode-title")


def test_keys_move_by_steps_and_seconds(opened: Page) -> None:
    assert_all_show(opened, 0)
    opened.press("ArrowRight")
    assert_all_show(opened, 1)
    opened.press("ArrowRight", shift=True)
    assert_all_show(opened, 31)
    opened.press("ArrowLeft")
    assert_all_show(opened, 30)
    opened.press("End")
    assert_all_show(opened, 59)
    opened.press("ArrowRight")
    assert_all_show(opened, 59)
    opened.press("ArrowLeft", shift=True)
    assert_all_show(opened, 29)
    opened.press("Home")
    assert_all_show(opened, 0)


def test_scrubber_is_clicked_and_dragged(opened: Page) -> None:
    opened.click("#step", 0.5)
    assert opened.step == pytest.approx(29.5, abs=1)
    assert_all_show(opened, opened.step)
    opened.drag("#step", 0.5, 0.8)
    assert opened.step == pytest.approx(0.8 * 59, abs=2)
    assert_all_show(opened, opened.step)
    opened.press("ArrowRight")  # the scrubber has the focus: one step, not two
    opened.press("PageDown")
    opened.wait_for("document.querySelector('#episode-title').textContent.includes('Episode 1')")


@pytest.mark.parametrize("plot", ["left_waist", "right_gripper"])
def test_a_plot_is_clicked_and_dragged(opened: Page, plot: str) -> None:
    over = f'[aria-label^="{plot}"] .u-over'
    opened.click(over, 0.25)
    assert opened.step == pytest.approx(0.25 * 59, abs=1)
    opened.drag(over, 0.25, 0.9)
    step = opened.step
    assert step == pytest.approx(0.9 * 59, abs=1)
    opened.hover("h1", 0)  # where the mouse is on a plot, values are those under it
    assert_all_show(opened, step)


def test_a_finger_drags_aside_and_scrolls_up(page: Page, server: ViewServer) -> None:
    page.open(server.address, 390, 844)
    over = '[aria-label^="left_elbow"] .u-over'
    page.evaluate(f"document.querySelector('{over}').scrollIntoView({{block: 'center'}})")
    for path, step in (([(0.5, 0), (0.6, 0), (0.8, 0)], 0.8 * 59), ([(0.25, 0)], 0.25 * 59)):
        page.touch(over, path)
        page.wait_for(f"Math.abs(document.querySelector('#clock b').textContent - {step}) <= 1")
    page.press("Home")
    assert_all_show(page, 0)  # the values do not stay where the finger was
    top = page.evaluate("scrollY")
    page.touch(over, [(0.5, 0), (0.5, -60), (0.5, -120)])
    page.wait_for(f"scrollY > {top}")
    assert_all_show(page, 0)


def test_values_under_the_mouse_are_shown_on_all_plots(opened: Page) -> None:
    opened.hover('[aria-label^="left_elbow"] .u-over', 0.5)
    opened.wait_for("document.querySelector('.u-cursor-x')")
    shown = [opened.values(name)["state"] for name in JOINTS[:3]]
    state = SOURCE.vectors(0, "state")[:, :3]
    nearest = int(np.abs(state - shown).sum(axis=1).argmin())
    assert nearest == pytest.approx(29.5, abs=1) and shown == pytest.approx(state[nearest], abs=0.006)
    assert opened.step == 0
    opened.hover("h1", 0)
    assert_all_show(opened, 0)


def test_cameras_play_together_and_stop_at_one_step(opened: Page) -> None:
    opened.press(" ")
    assert opened.evaluate("document.querySelector('#play').getAttribute('aria-label')") == "Pause"
    opened.wait_for("Number(document.querySelector('#clock b').textContent) >= 5")
    opened.press(" ")
    step = opened.step
    assert 5 <= step < 59
    assert_all_show(opened, step)


@pytest.mark.slow
def test_a_camera_that_falls_behind_catches_up(page: Page, tmp_path: Path) -> None:
    source = numbered_source([1200])
    with served(source, tmp_path) as server:
        page.open(server.address)
        page.press(" ")
        page.wait_for("document.querySelectorAll('video')[1].currentTime > 1")
        first, second = (f"document.querySelectorAll('video')[{number}]" for number in (0, 1))
        apart = f"Math.abs({first}.currentTime - {second}.currentTime)"
        for late in ("- .8", "+ .8", "- .2"):
            # In one script: a moment later it may have caught up.
            assert page.evaluate(f"{second}.currentTime = {first}.currentTime {late}; {apart}") > 0.1
            page.wait_for(f"{apart} < .05")
        page.press(" ")
        assert_all_show(page, page.step, source)


def test_playing_ends_at_the_last_step_and_begins_anew(opened: Page) -> None:
    for _ in range(2):
        opened.press(">")
    assert opened.evaluate("document.querySelector('#speed').value") == "4"
    opened.press("ArrowRight", shift=True)
    opened.click("#play")
    opened.wait_for("document.querySelector('#play').getAttribute('aria-label') == 'Play'")
    assert_all_show(opened, 59)
    opened.press(" ")  # not the button's: it gave the focus back
    opened.wait_for("Number(document.querySelector('#clock b').textContent) < 59")


# Episodes --------------------------------------------------------------------------------------------


def test_keys_and_list_lead_from_episode_to_episode(opened: Page) -> None:
    opened.press("n")
    opened.press("n")
    opened.wait_until_shown()
    assert_all_show(opened, 0, episode=2)
    opened.press("PageUp")
    opened.wait_until_shown()
    assert_all_show(opened, 0, episode=1)
    opened.click("#episode-0")
    opened.wait_until_shown()
    assert_all_show(opened, 0)
    assert "60 steps" in opened.text("#episode-title") and opened.text("#task") == "put the cube into the box"
    opened.press("p")
    assert opened.evaluate("document.querySelector('[aria-selected=true]').id") == "episode-0"


# What is odd -----------------------------------------------------------------------------------------


def test_findings_lead_to_their_step(opened: Page) -> None:
    opened.wait_for("document.querySelector('#finding-count').textContent == '2'")
    opened.wait_for("document.querySelector('#episode-1 .badges').textContent == '1'")
    opened.click("#show-findings")
    assert "something is wrong" in opened.text("#finding-list") and "whole dataset is odd" in opened.text(
        "#finding-list"
    )
    opened.click("button.finding")
    opened.wait_until_shown()
    assert_all_show(opened, 30, episode=1)
    assert opened.evaluate("document.querySelector('#marks i').style.left").startswith("68.18")


def test_distributions_have_a_histogram_for_each_joint(opened: Page) -> None:
    opened.click("#show-distributions")
    opened.wait_for("document.querySelector('#distributions [role=status]').textContent.startsWith('All 185 steps')")
    figures = "[...document.querySelectorAll('#distributions .grid .histogram')]"
    assert opened.evaluate(f"{figures}.map(figure => figure.querySelector('b').textContent)") == list(JOINTS)
    assert opened.evaluate(f"{figures}.map(figure => figure.querySelectorAll('path').length)") == [2] * len(JOINTS)
    values = np.concatenate([SOURCE.vectors(episode, "state")[:, 0] for episode in range(3)])
    facts = opened.text("#distributions .grid .histogram .facts.state").replace("\u2212", "-")
    assert facts == f"state: {values.mean():.2f} ± {values.std():.2f}"
    assert "45 to 80 steps, median 60" in opened.text("#distributions .lengths")


# Looks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_everything_fits_and_can_be_read(page: Page, server: ViewServer, width: int, dark: bool) -> None:
    page.open(server.address, width, 844, dark)
    page.wait_for("document.querySelector('#finding-count').textContent == '2'")
    for button in ("together", "show-findings", "show-distributions"):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) >= 4.5, button
        page.evaluate(f"document.querySelector('#{button}').click()")
    page.evaluate("document.querySelector('#side-open').click()")
    page.evaluate("document.querySelector('#help').showModal()")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) >= 4.5


def test_all_controls_have_names_and_show_their_focus(opened: Page) -> None:
    unnamed = (
        "[...document.querySelectorAll('button, input, select, video, [role=img], [role=listbox]')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim())).length"
    )
    assert opened.evaluate(unnamed) == 0
    reached = []
    for _ in range(20):
        opened.press("Tab")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert opened.evaluate(outline) != "none"
        reached.append(opened.evaluate("document.activeElement.id"))
    assert {"help-open", "filter", "episode-list", "play", "step", "speed", "together"} <= set(reached)


def test_help_lists_the_keys(opened: Page) -> None:
    opened.press("?")
    assert opened.evaluate("document.querySelector('#help').open")
    assert "previous, next episode" in opened.text("#help")
    opened.press("Escape")
    opened.wait_for("!document.querySelector('#help').open")


def test_together_draws_all_joints_of_a_side_in_one_plot(opened: Page) -> None:
    opened.click("#together")
    assert opened.evaluate("document.querySelectorAll('.plot').length") == 2
    opened.press("ArrowRight", shift=True)
    assert_all_show(opened, 30)
