"""A page of `bimact view` in a real browser: opens it, moves the mouse, presses keys, reads what is shown."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from numbered_source import JOINTS, READ_STEP, NumberedSource, numbered_source

from bimact.check.findings import Finding
from bimact.data.source import Source
from bimact.view.server import Background, ViewServer

_KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "PageUp": 33, "PageDown": 34}
_KEYS |= {"Escape": 27, "Tab": 9, "Enter": 13}


SOURCE = numbered_source()


@contextmanager
def served(source: Source, folder: Path, findings: Sequence[Finding] = ()) -> Iterator[ViewServer]:
    """A server in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    background = Background(source, lambda: findings)
    with ViewServer(source, folder, background) as server:
        background.start()
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            background.stop()
            server.shutdown()
            thread.join()


@contextmanager
def command(dataset: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command `bimact view` as a process, and the address that it prints."""
    arguments = [sys.executable, "-m", "bimact", "view", str(dataset), "--no_open", *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(arguments, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        said = []
        while not (line := process.stdout.readline()).startswith("http://127.0.0.1:"):  # what is used comes first
            said.append(line)
            assert line, "".join(said)
        yield process, line.split()[0]
    finally:
        process.send_signal(signal.SIGINT)  # it removes its videos then
        process.wait(20)


class Page:
    """The page in the browser."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        if not browser.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.42E01E\"')"):
            pytest.skip("this Chromium was built without H.264")

    def open(self, address: str, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Open the page and wait until state, action and all videos are there."""
        call = self.browser.call
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        call("Emulation.setEmulatedMedia", features=[scheme])
        call("Page.navigate", url="about:blank")
        self.wait_for("location.href == 'about:blank'")
        call("Page.navigate", url=address)
        self.wait_until_shown()

    def wait_until_shown(self) -> None:
        self.wait_for("document.readyState == 'complete' && document.querySelector('#clock')?.textContent")
        self.wait_for("document.querySelector('.plot canvas, #problem:not([hidden])')")
        is_done = "(view.querySelector('video').readyState >= 2 || view.querySelector('progress').hidden)"
        self.wait_for(f"[...document.querySelectorAll('.camera')].every(view => {is_done})")

    def evaluate(self, expression: str) -> Any:
        return self.browser.evaluate(expression)

    def wait_for(self, condition: str) -> None:
        self.browser.wait_for(f"!!({condition})")

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    def press(self, key: str, shift: bool = False) -> None:
        typed = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"windowsVirtualKeyCode": _KEYS[key]} if key in _KEYS else {}
        event = {"key": key, "modifiers": 8 if shift else 0, **code}
        self.browser.call("Input.dispatchKeyEvent", type="keyDown", **event, **typed)
        self.browser.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str, along: float = 0.5) -> None:
        self.drag(selector, along, along)

    def hover(self, selector: str, along: float) -> None:
        """Move the mouse to a point of an element, which is scrolled into view first."""
        self.browser.call("Input.dispatchMouseEvent", type="mouseMoved", **self._point(selector, along))

    def drag(self, selector: str, begin: float, end: float) -> None:
        """Press the mouse on an element, move, let go; from 0, its left end, to 1, its right end."""
        points = [self._point(selector, begin + (end - begin) * part / 4) for part in range(5)]
        left: dict[str, Any] = {"button": "left", "clickCount": 1}
        self.browser.call("Input.dispatchMouseEvent", type="mouseMoved", **points[0])
        self.browser.call("Input.dispatchMouseEvent", type="mousePressed", buttons=1, **left, **points[0])
        for point in points[1:] if begin != end else []:
            self.browser.call("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, **point)
        self.browser.call("Input.dispatchMouseEvent", type="mouseReleased", **left, **points[-1])

    def touch(self, selector: str, path: Sequence[tuple[float, float]]) -> None:
        """Put a finger on an element, move it, lift it; (from 0, its left end, to 1, its right end; pixels down)."""
        kinds = ["touchStart", *["touchMove"] * (len(path) - 1)]
        start = self._point(selector, 0)
        ends = self._point(selector, 1)
        for kind, (along, down) in zip(kinds, path):
            point = {"x": start["x"] + along * (ends["x"] - start["x"]), "y": start["y"] + down}
            self.browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=[point])
        self.browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def _point(self, selector: str, along: float) -> dict[str, float]:
        box = self.evaluate(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            "element.scrollIntoView({block: 'nearest'}); const box = element.getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height]; })()"
        )
        return {"x": box[0] + along * max(0, box[2] - 1), "y": box[1] + box[3] / 2}

    @property
    def step(self) -> int:
        """What the page says in figures."""
        return int(self.text("#clock b"))

    def wait_for_frames(self, step: int, *cameras: int) -> None:
        """Wait until the page is at a step, and the pixels of the cameras with these numbers show it."""
        self.wait_for(f"document.querySelector('#clock b').textContent == '{step}'")
        self.wait_for("[...document.querySelectorAll('video')].every(video => video.paused && !video.seeking)")
        deadline = time.monotonic() + 20
        # A video that has ended its way may be on the next one at once, and paints when it finds the time.
        while any((frames := self.frames())[camera] != step for camera in cameras):
            assert time.monotonic() < deadline, f"the cameras show {frames} instead of step {step}"
            time.sleep(0.05)

    def frames(self) -> list[int]:
        """The steps that the cameras show, read from their pixels."""
        return list(self.evaluate(f"[...document.querySelectorAll('video')].map({READ_STEP})"))

    def times(self) -> list[float]:
        return list(self.evaluate("[...document.querySelectorAll('video')].map(video => video.currentTime)"))

    def values(self, joint: str) -> dict[str, float]:
        """State and action of a joint as they stand beside its name."""
        found = self.evaluate(
            f"Object.fromEntries([...document.querySelectorAll('.plot .value')]"
            f".filter(value => value.title.startsWith({json.dumps(joint)} + ': '))"
            ".map(value => [value.title.split(': ').at(-1), value.textContent]))"
        )
        return {kind: float(text.replace("\u2212", "-")) for kind, text in found.items()}

    def line(self) -> float:
        """Where the first plot's line stands, in steps."""
        return float(
            self.evaluate(
                "(() => { const over = document.querySelector('.u-over'), now = over.querySelector('.now');"
                "return (new DOMMatrix(getComputedStyle(now).transform).m41) / over.clientWidth; })()"
            )
        )


def assert_all_show(page: Page, step: int, source: NumberedSource = SOURCE, episode: int = 0) -> None:
    """Videos, values, line and scrubber agree with the dataset's step."""
    page.wait_for_frames(step, *range(len(source.cameras)))
    assert page.times() == pytest.approx([(step + 0.5) / (source.fps or 50)] * len(source.cameras), abs=1e-4)
    for number in (0, 8, len(JOINTS) - 1):
        values = page.values(JOINTS[number])
        for kind in ("state", "action"):
            assert values[kind] == pytest.approx(source.vectors(episode, kind)[step, number], abs=0.006)
    last = source.episodes[episode].length - 1
    assert page.line() == pytest.approx(step / last, abs=0.005)
    assert page.evaluate("document.querySelector('#step').value") == str(step)
    assert f"step {step} of {last}" in page.evaluate("document.querySelector('#step').getAttribute('aria-valuetext')")
