"""The server of `bimact view`: what it answers, to whom, and how it ends."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import av
import numpy as np
import pytest
from numbered_source import JOINTS, numbered_source
from viewing import command, served

from bimact.cli import main
from bimact.errors import UserError
from bimact.view import clips
from bimact.view.clips import ClipStore
from bimact.view.server import Background, ViewServer

CAMERAS = ("top", 'a b/"c"')
SOURCE = numbered_source([30, 12], cameras=CAMERAS, fps=29.97, image_size=(121, 225))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewServer]:
    with served(SOURCE, tmp_path_factory.mktemp("view")) as server:
        yield server


def ask(
    address: str, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.headers), body


def answer(server: ViewServer, path: str) -> Any:
    status, _, body = ask(server.address, path)
    assert status == 200, body
    return json.loads(body)


def wait_for_answer(address: str, path: str, key: str, value: Any) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        content = json.loads(ask(address, path)[2])
        if content[key] == value:
            return content
        time.sleep(0.05)
    raise AssertionError(f"{path} never had {key} = {value}: {content}")


# What it answers -------------------------------------------------------------------------------------


def test_dataset_and_episodes(server: ViewServer) -> None:
    content = answer(server, "/api/dataset")
    assert [episode["length"] for episode in content["episodes"]] == [30, 12]
    assert [camera["name"] for camera in content["cameras"]] == list(CAMERAS)
    assert [joint["name"] for joint in content["joints"]] == list(JOINTS)
    assert content["fps"] == 29.97 and content["fps_is_known"]
    episode = answer(server, "/api/episode/1")
    for kind in ("state", "action"):
        values = np.frombuffer(base64.b64decode(episode[kind]), "<f4").reshape(14, 12).T
        np.testing.assert_array_equal(values, SOURCE.vectors(1, kind))


@pytest.mark.parametrize("number", range(len(CAMERAS)))
def test_a_video_has_one_frame_a_step_at_the_datasets_rate(server: ViewServer, number: int, tmp_path: Path) -> None:
    status, headers, body = ask(server.address, f"/video/0/{quote(CAMERAS[number], safe='')}.mp4")
    assert status == 200 and headers["Content-Type"] == "video/mp4"
    (tmp_path / "video.mp4").write_bytes(body)
    with av.open(str(tmp_path / "video.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.average_rate == pytest.approx(29.97)
    steps = [float(frame.pts * stream.time_base) * 29.97 for frame in frames]
    assert steps == pytest.approx(range(30), abs=1e-6)
    keyframes = [step for step, frame in enumerate(frames) if frame.key_frame]
    assert keyframes == [0, 10, 20]
    images = list(SOURCE.read_frames(0, CAMERAS[number], range(30)))
    for image, frame in zip(images, frames):
        shown = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
        assert shown.shape == (122, 226, 3)  # odd edges are repeated
        assert abs(shown[:121, :225].astype(int) - image).mean() < 6


def test_a_part_of_a_video_is_that_part(server: ViewServer) -> None:
    path = "/video/1/top.mp4"
    _, headers, whole = ask(server.address, path)
    assert headers["Accept-Ranges"] == "bytes"
    size = len(whole)
    for asked, begin, end in (
        ("bytes=0-", 0, size),
        ("bytes=10-19", 10, 20),
        (f"bytes={size - 1}-", size - 1, size),
        (f"bytes=5-{size + 99}", 5, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=-{size + 9}", 0, size),
    ):
        status, headers, body = ask(server.address, path, {"Range": asked})
        assert (status, headers["Content-Range"]) == (206, f"bytes {begin}-{end - 1}/{size}"), asked
        assert body == whole[begin:end], asked
    for asked in (f"bytes={size}-", "bytes=9-3", "bytes=-0"):
        status, headers, body = ask(server.address, path, {"Range": asked})
        assert (status, headers["Content-Range"], body) == (416, f"bytes */{size}", b""), asked
    for asked in ("bytes=-", "bytes=1-2,4-5", "steps=1-2", "bytes=a-b"):
        assert ask(server.address, path, {"Range": asked})[::2] == (200, whole), asked


def test_distributions_are_those_of_all_episodes(server: ViewServer) -> None:
    content = wait_for_answer(server.address, "/api/distributions", "state", "done")
    assert content["done"] == content["of"] == 2
    assert (content["lengths"]["low"], content["lengths"]["high"]) == (12, 30)
    for kind in ("state", "action"):
        values = np.concatenate([SOURCE.vectors(0, kind), SOURCE.vectors(1, kind)])
        for dimension, facts in enumerate(content["joints"][kind]):
            column = values[:, dimension].astype(np.float64)
            assert facts["count"] == 42 and facts["nonfinite"] == 0
            expected = [column.min(), column.max(), column.mean(), column.std()]
            assert [facts[name] for name in ("low", "high", "mean", "deviation")] == pytest.approx(expected)
            edges = facts["begin"] + facts["width"] * np.arange(len(facts["counts"]) + 1)
            assert facts["counts"] == np.histogram(column, edges)[0].tolist()


def test_a_damaged_camera_is_a_sentence(tmp_path: Path) -> None:
    with served(numbered_source(broken_camera="top"), tmp_path) as server:
        status, _, body = ask(server.address, "/video/0/top.mp4")
        assert status == 422 and json.loads(body) == {"error": "episode 0: camera top has no image at step 3"}
        assert answer(server, "/api/clips/0")["top"]["error"] == "episode 0: camera top has no image at step 3"
        assert ask(server.address, "/video/0/left_wrist.mp4")[0] == 200


# To whom ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/dataset", "/video/0/top.mp4"])
def test_strangers_hosts_get_nothing(server: ViewServer, path: str) -> None:
    port = server.server_address[1]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "",
        "[::1",
        "a@localhost",
    ):
        assert ask(server.address, path, {"Host": host})[0] == 403, host
    for host in (f"127.0.0.1:{port}", "localhost:9999", "localhost"):
        assert ask(server.address, path, {"Host": host})[0] == 200, host


def test_only_get_is_answered(server: ViewServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"):
        assert ask(server.address, "/api/dataset", method=method)[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/video/0/..%2F..%2F..%2Fetc%2Fpasswd.mp4",
        "/video/0/%2Fetc%2Fpasswd.mp4",
        "/video/2/top.mp4",
        "/video/-1/top.mp4",
        "/video/0/top",
        "/api/episode/2",
        "/api/episode/99999999999999999999",
        "/api/clips/2",
        "/api/",
        "/main.js",
        "/vendor/uplot/LICENSE",
    ],
)
def test_nothing_else_is_served(server: ViewServer, path: str) -> None:
    status, headers, body = ask(server.address, path)
    assert status == 404 and headers["Content-Type"] == "application/json" and "error" in json.loads(body)


def test_only_the_pages_own_scripts_may_run(server: ViewServer) -> None:
    pages = [ask(server.address, "/") for _ in range(2)]
    policies = [headers["Content-Security-Policy"] for _, headers, _ in pages]
    assert policies[0] != policies[1]  # the random number is another one each time
    for (_, headers, body), policy in zip(pages, policies):
        nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
        text = body.decode()
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert text.count("<script") == text.count(f'nonce="{nonce}">') - text.count("<style")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_it_listens_to_this_machine_alone(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", server.server_address[1]))


def test_a_port_in_use_is_a_sentence(server: ViewServer, tmp_path: Path) -> None:
    port = server.server_address[1]
    with pytest.raises(UserError, match=f"port {port} is in use: choose another --port"):
        ViewServer(SOURCE, tmp_path, Background(SOURCE, tuple), port)


# Videos ----------------------------------------------------------------------------------------------


def test_what_nobody_wants_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "_SECONDS_UNTIL_CANCELLED", 0.05)
    store = ClipStore(numbered_source([16_000] * 4 + [5]), tmp_path)
    for episode in range(4):
        store.progress(episode)
    while not list(tmp_path.glob("*.partial")):
        time.sleep(0.01)
    assert store.path(4, "top").name == "4-0.mp4"  # does not wait for the long ones
    while list(tmp_path.glob("*.partial")):
        time.sleep(0.01)
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"4"}


def test_old_videos_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "_MOST_CLIPS", 2)
    store = ClipStore(numbered_source([3] * 3, cameras=("top",)), tmp_path)
    for episode in range(3):
        assert store.path(episode, "top").exists()
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["1-0.mp4", "2-0.mp4"]
    assert store.path(0, "top").exists()


# The command -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(dataset: Path) -> None:
    state = np.load(dataset / "observations.npy")
    state["state"][15, 3] = np.nan
    np.save(dataset / "observations.npy", state)
    before = sorted(dataset.rglob("*"))
    with command(dataset) as (process, address):
        content = json.loads(ask(address, "/api/dataset")[2])
        assert content["total_steps"] == 38 and content["fps"] == 50
        assert ask(address, "/video/0/left.mp4")[0] == 200
        findings = wait_for_answer(address, "/api/findings", "state", "done")["findings"]
        assert any(finding["episode"] == 1 and finding["step"] == 6 for finding in findings), findings
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read().splitlines()[-1] == "ended"
    assert sorted(dataset.rglob("*")) == before


@pytest.mark.slow
def test_a_selection_is_shown(dataset: Path) -> None:
    with command(dataset, "--cameras", "right", "--state_dims", "0:3", "--max_episodes", "2") as (_, address):
        content = json.loads(ask(address, "/api/dataset")[2])
        assert [camera["name"] for camera in content["cameras"]] == ["right"]
        assert (content["state_size"], len(content["episodes"])) == (3, 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--episode", "4"], "--episode is 4, {} has episodes 0 to 3"),
        (["--export", "{}/metadata.json"], "{}/metadata.json exists already: choose another name, or remove it"),
        (["--rerun", "{}/metadata.json"], "{}/metadata.json exists already"),
        (["--export", "{}/none/page.html"], "there is no folder {}/none: create it first"),
        (["--export", "{}/page.html", "--export_width", "0"], "--export_width is 0, it has to be 16 or more pixels"),
        (["--port", "70000"], "--port is 70000"),
        (["--cameras", "middle"], "has no camera 'middle'; it has left, right"),
    ],
)
def test_faults_are_one_sentence(
    dataset: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["view", str(dataset), "--no_open", *(option.format(dataset) for option in options)])
    assert stop.value.code == 2
    assert sentence.format(dataset) in capsys.readouterr().err


def test_an_export_is_one_file(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit) as stop:
        main(["view", str(dataset), "--episode", "2", "--export", str(page)])
    assert not stop.value.code
    assert f"{page}: " in capsys.readouterr().out
    text = page.read_text()
    embedded = json.loads(text.split('id="embedded"')[1].split(">", 1)[1].split("</script>")[0])
    assert [episode["number"] for episode in embedded["api/dataset"]["episodes"]] == [2]
    assert set(embedded) == {"api/dataset", "api/episode/2", "video/2/left.mp4", "video/2/right.mp4"}
