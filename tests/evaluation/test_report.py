"""The page on a run: what it says, that it needs no other file, no name breaks it, and browsers show it."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CONTRAST, Browser
from PIL import Image
from rich.console import Console

from bimact.config import save_config, to_config
from bimact.errors import UserError
from bimact.evaluation import report
from bimact.evaluation.intervals import wilson_interval
from bimact.evaluation.report import summary_table, write_report
from bimact.video import VideoWriter

CHUNK, STEPS, TASK = 10, 25, "transfer_cube"
_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
JOINTS = [f"{side}_{joint}" for side in ("left", "right") for joint in _ARM]
HOSTILE = "left_<script>alert('$x')</script>&\"$"


# A run's folder --------------------------------------------------------------------------------------


def make_run(folder: Path, **settings: Any) -> Path:
    """A run of which there is only the config."""
    folder.mkdir(parents=True)
    save_config(to_config({"cameras": ["top"], "state_dim": 14, "action_dim": 14, **settings}), folder / "config.yaml")
    return folder


def add_metrics(run: Path, steps: int = 1500, kl: float = 0.0) -> None:
    lines = []
    for step in range(50, steps + 1, 50):
        action = 1.0 / step
        shares = {"steps_per_second": 5.0, "time_per_batch": 0.2, "data_wait_share": 0.01}
        losses = {"total_loss": action + kl, "action_loss": action, "kl_loss": kl, "kl_divergence": kl / 10}
        lines.append({"step": step, "epoch": 1, **losses, "lr": 1e-4, **shares})
    lines.append({"step": steps, "epoch": 1, "time_per_epoch": 200.0, "val_loss": 0.02})
    lines.append({"step": steps, "epoch": 2, "time_per_epoch": 28.0, "val_loss": 0.01})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def offline_results(names: list[str], fps: float | None = 50) -> dict[str, Any]:
    random = np.random.default_rng(0)

    def errors(mae: float) -> dict[str, Any]:
        by_joint, by_step = random.uniform(0, mae, len(names)), random.uniform(0, mae, CHUNK)
        return {"mae": mae, "mae_by_joint": by_joint.tolist(), "mae_by_horizon_step": by_step.tolist()}

    demonstrated = np.cumsum(random.normal(size=(STEPS, len(names))), axis=0)
    return {
        "dataset": "/data/somewhere",
        "episodes": "held out",
        "episode_numbers": [3, 5],
        "windows": 2 * STEPS,
        "joint_names": names,
        "fps": fps,
        **errors(0.0143),
        "baselines": {"hold the last position": errors(0.1795), "mean action": errors(0.2272)},
        "trajectory": {
            "episode": 3,
            "chunk_size": CHUNK,
            "predicted": (demonstrated + 0.1).tolist(),
            "demonstrated": demonstrated.tolist(),
        },
    }


def rollout_results(successes: int = 97, rollouts: int = 100, task: str = TASK, **settings: Any) -> dict[str, Any]:
    rewards = [4.0] * successes + [float(number % 4) for number in range(rollouts - successes)]
    each = [
        {
            "seed": 1000 + n,
            "highest_reward": r,
            "final_reward": r,
            "video": f"videos/{task}-seed-{1000 + n}.mp4",
        }
        for n, r in enumerate(rewards)
    ]
    return {
        "settings": {"task": task, "seed": 1000, "temporal_ensemble": False, "videos": 2, **settings},
        "execute_steps": 50,
        "rollouts": rollouts,
        "successes": successes,
        "success_rate": successes / rollouts,
        "interval_95": wilson_interval(successes, rollouts),
        "successes_at_the_end": max(0, successes - 1),
        "reward_reached": {str(level): sum(r >= level for r in rewards) for level in (1, 2, 3, 4)},
        "steps": 400,
        "seconds_a_rollout": 0.17,
        "each": each,
    }


def add_results(run: Path, **results: Any) -> None:
    of_last = {"checkpoint": "act-train-last.pth"}
    results["rollouts"] = {task: {**of_last, **result} for task, result in results.get("rollouts", {}).items()}
    if "offline" in results:
        results["offline"] = {**of_last, **results["offline"]}
    (run / "evaluation.json").write_text(json.dumps(results))


def add_video(run: Path, seed: int) -> None:
    video = VideoWriter(run / "videos" / f"{TASK}-seed-{seed}.mp4", fps=50)
    for shade in range(0, 250, 10):
        video.add(np.full((48, 64, 3), shade, dtype=np.uint8))
    video.close()


def make_dataset(folder: Path) -> Path:
    folder.mkdir()
    kinds = [("image_top", np.uint8, (48, 64, 3)), ("state", np.float32, (14,))]
    np.save(folder / "observations.npy", np.zeros(2 * STEPS, dtype=kinds))
    np.save(folder / "actions.npy", np.zeros((2 * STEPS, 14), dtype=np.float32))
    np.save(folder / "rollout_length.npy", np.array([STEPS, STEPS]))
    recording = {
        "task": TASK,
        "episodes": 2,
        "cameras": ["top"],
        "image_size": [48, 64],
        "noise": 0.0,
        "seed": 0,
    }
    seeds = [{"number": 0, "seed": 0, "failed": 0}, {"number": 1, "seed": 1, "failed": 0}]
    metadata = {"fps": 50, "joint_names": JOINTS, "task": TASK, "settings": recording, "episodes": seeds}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has everything."""
    folder = tmp_path_factory.mktemp("report")
    data = make_dataset(folder / "data")
    encoder = {"name": "conv", "pretrained": None, "freeze": False, "crop": [0.4, 0.1, 0.5, 0.7]}
    run = make_run(folder / "run", dataset_dir=str(data), val_split=0.5, use_vae=False, chunk_size=100, encoder=encoder)
    add_metrics(run)
    pictures = [{"camera": "top", "step": 5, "picture": "saliency/top-5.png", "largest": 0.25}]
    add_results(run, offline={**offline_results(JOINTS), "saliency": pictures}, rollouts={TASK: rollout_results()})
    (run / "saliency").mkdir()
    Image.new("L", (48, 20)).save(run / "saliency" / "top-5.png")
    for seed in (1000, 1001):
        add_video(run, seed)
    (run / "checkpoint").mkdir()
    weights = {"queries.weight": torch.zeros(1000, 1500), "layer.norm.running_mean": torch.zeros(10**6)}
    torch.save(weights, run / "checkpoint" / "act-train-last.pth")
    write_report(run)
    return run


# Reading the page ------------------------------------------------------------------------------------


class Page(HTMLParser):
    """A page's text, its elements, and whether they are closed in the order in which they were opened."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr", "source"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(path.read_text())
        self.close()
        assert self._open == []
        self.text = " ".join("".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self._text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def full_page(full_run: Path) -> Page:
    return Page(full_run / "report.html")


def page_of(run: Path) -> Page:
    return Page(write_report(run))


# What it says ----------------------------------------------------------------------------------------


def test_sections_come_in_order(full_page: Page) -> None:
    sections = [attributes["id"] for attributes in full_page.all("section")]
    assert sections == [
        "result",
        "paper",
        "videos",
        "rollouts",
        "learning",
        "errors",
        "saliency",
        "trajectory",
        "settings",
    ]
    assert not any("missing" in (attributes.get("class") or "") for attributes in full_page.all("p"))
    assert "the normalised actions by 0.250 at most" in full_page.text
    assert "top, 0.1 s" in full_page.text


def test_headline_is_what_was_measured(full_page: Page) -> None:
    low, high = wilson_interval(97, 100)
    assert "97 of 100 rollouts succeeded" in full_page.text
    assert f"95% interval {low:.1%} to {high:.1%} (Wilson)" in full_page.text
    assert (
        "open loop, 50 of 100 steps of each chunk; seeds 1000 to 1099, scenes that no demonstration has"
        in full_page.text
    )
    assert "0.0143hold the last position: 0.1795mean action: 0.2272" in full_page.text
    assert "Training time3.8 min2 epochs" in full_page.text
    assert "1.5 million" in full_page.text, "running statistics are no parameters"
    assert "21 of them held out of training" in full_page.text
    assert "proves the plumbing" not in full_page.text
    strip = next(attributes for attributes in full_page.all("span") if attributes.get("class") == "interval")
    assert strip["style"] == f"left:{low:.2%};width:{high - low:.2%}"


def test_paper_stands_beside_it_and_rows_that_differ_are_marked(full_run: Path, full_page: Page) -> None:
    assert "paper 86%" in full_page.text
    html = (full_run / "report.html").read_text()
    rows = {name: bool(mark) for mark, name in re.findall(r'<tr( class="differs")?><th scope="row">([^<]*)<', html)}
    assert rows["Image encoder"] and rows["Latent"] and rows["Camera image"] and rows["Execution"]
    assert not rows["Chunk size"] and not rows["Cameras"] and not rows["Loss"]
    assert "48 × 64, cropped to 24 × 45" in full_page.text


def test_the_papers_setting_differs_only_where_it_does(tmp_path: Path) -> None:
    encoder = {
        "name": "timm",
        "model_name": "resnet18",
        "pretrained": True,
        "freeze": False,
        "fuse": "tokens",
    }
    run = make_run(tmp_path / "run", chunk_size=100, temporal_context=1, encoder=encoder)
    add_results(run, rollouts={TASK: rollout_results(temporal_ensemble=True)})
    write_report(run)
    html = (run / "report.html").read_text()
    differs = re.findall(r'<tr class="differs"><th scope="row">([^<]*)<', html)
    assert differs == ["Action decoder", "Evaluation"], "what is unknown is not said to differ"


def test_stages_failures_and_videos(full_page: Page) -> None:
    assert "1 · cube touched99 of 100" in full_page.text
    assert "4 · held by left97 of 100" in full_page.text
    assert "The 3 rollouts that failed" in full_page.text
    assert "10981cube touched1" in full_page.text, "seed, highest reward, stage, reward at the end"
    assert len(full_page.all("video")) == 2
    assert "seed 1000 · success" in full_page.text
    frames = [image for image in full_page.all("img") if "first video" in (image["alt"] or "")]
    assert len(frames) == 6


def test_a_failed_rollout_says_how_far_it_came(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_results(run, rollouts={"insertion": rollout_results(0, 30, task="insertion")})
    add_video(run, 1002)
    (run / "videos" / f"{TASK}-seed-1002.mp4").rename(run / "videos" / "insertion-seed-1002.mp4")
    text = page_of(run).text
    assert "seed 1002 · failed, highest stage 2 of 4: both lifted" in text
    assert "paper 32%" in text


def test_few_rollouts_and_steps_prove_the_plumbing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_metrics(run, steps=100)
    add_results(run, rollouts={TASK: rollout_results(1, 4)})
    text = page_of(run).text
    assert "This run proves the plumbing, not the policy" in text
    assert "come from only 4 rollouts and 100 optimizer steps." in text


def test_scenes_of_the_demonstrations_are_told(full_run: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dataset_dir=str(full_run.parent / "data"))
    results = rollout_results(30, 30)
    results["each"] = [{**rollout, "seed": rollout["seed"] - 1000} for rollout in results["each"]]
    add_results(run, rollouts={TASK: results})
    assert "2 are scenes of the demonstrations" in page_of(run).text


def test_commands_repeat_the_run(full_run: Path, full_page: Page) -> None:
    run = str(full_run)
    assert f"bimact train --config {run}/config.yaml --output_dir {run}-again" in full_page.text
    assert "--encoder.weights_from_checkpoint false" in full_page.text
    assert (
        f"--run {run} --checkpoint last --task {TASK} --rollouts 100 --seed 1000 --execute_steps 50" in full_page.text
    )
    assert f"bimact record --task {TASK} --episodes 2 --cameras top --image_size 48x64" in full_page.text


# What is missing -------------------------------------------------------------------------------------


def test_a_config_is_enough(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = page_of(run)
    assert "Success rate: not measured yet" in page.text
    for command in (
        f"bimact evaluate --run {run} --task {TASK} --rollouts 100 --video 5",
        f"The error on held-out demonstrations is measured by bimact evaluate --run {run} ",
        f"No metrics.jsonl. It is written by bimact train --config {run}/config.yaml",
    ):
        assert command in page.text
    assert "differs: unknown" not in page.text
    assert "No frames of a demonstration: the run's config names no dataset" in page.text
    assert page.all("svg") == [] and page.all("video") == []


def test_a_dataset_that_is_gone_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dataset_dir=str(tmp_path / "gone"))
    assert f"No frames of a demonstration: dataset not found: {tmp_path}/gone" in page_of(run).text


def test_videos_of_replaced_results_are_not_given_an_outcome(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    results = rollout_results()
    results["each"] = [{**rollout, "video": None} for rollout in results["each"]]
    add_results(run, rollouts={TASK: results})
    add_video(run, 1000)
    text = page_of(run).text
    assert "Filmed in an earlier or unfinished evaluation" in text and f"{TASK}-seed-1000.mp4" in text
    assert "· success" not in text


def test_a_damaged_video_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "videos").mkdir()
    (run / "videos" / "cut.mp4").write_bytes(b"no video")
    assert "cut.mp4 · this file cannot be decoded" in page_of(run).text


@pytest.mark.slow
def test_videos_that_would_make_the_page_too_large_are_left_out(
    full_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(full_run, tmp_path / "run")
    size = (run / "videos" / f"{TASK}-seed-1000.mp4").stat().st_size
    monkeypatch.setattr(report, "_MAX_VIDEO_BYTES", size + 10)
    page = page_of(run)
    assert len(page.all("video")) == 1 and "1 more in" in page.text


@pytest.mark.parametrize(("name", "content"), [("evaluation.json", "{"), ("config.yaml", "no_such_key: 1")])
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(UserError):
        write_report(run)


def test_a_folder_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory: it has no config"):
        write_report(tmp_path)


# The page as a file ----------------------------------------------------------------------------------


def test_it_needs_no_other_file(full_run: Path, full_page: Page) -> None:
    for tag, attributes in full_page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "xlink:href", "poster", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value[:80]}>"
    html = (full_run / "report.html").read_text()
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert "default-src 'none'" in html


def test_ids_are_unique_and_refer_to_something(full_page: Page) -> None:
    ids = [attributes["id"] for _, attributes in full_page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in full_page.elements:
        for name in ("href", "xlink:href"):
            target = attributes.get(name) or ""
            assert not target.startswith("#") or target[1:] in ids
        clip = re.fullmatch(r"url\(#(.*)\)", attributes.get("clip-path") or "")
        assert clip is None or clip[1] in ids


def test_it_can_be_read_by_a_screen_reader(full_page: Page) -> None:
    assert full_page.all("html")[0]["lang"] == "en"
    assert len(full_page.all("h1")) == 1
    assert all(image["alt"] for image in full_page.all("img"))
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in full_page.all("svg"))
    assert len(full_page.all("svg")) == 4 + 3 + 14


@pytest.mark.parametrize("fps", [50, None])
def test_hostile_names_stay_text(tmp_path: Path, fps: float | None) -> None:
    run = make_run(tmp_path / "r'<script>x</script>", wandb_name=HOSTILE, dataset_dir=f"/{HOSTILE}")
    add_metrics(run, kl=0.5)
    offline = offline_results([HOSTILE, "joint $\\frac", HOSTILE + "_gripper"], fps)
    add_results(run, offline={**offline, "episodes": "all"}, rollouts={HOSTILE: rollout_results(task=HOSTILE)})
    page = page_of(run)
    assert page.all("script") == []
    assert HOSTILE in page.text
    assert "joint $\\frac" in page.text


@pytest.mark.slow
def test_other_robots_have_their_own_joints(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_results(run, offline=offline_results([f"joint {number}" for number in range(26)], fps=None))
    page = page_of(run)
    assert "All joints" in page.text and "Time in steps" in page.text
    assert "mean absolute error, robot's units" in page.text and " rad" not in page.text


def test_long_runs_stay_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_metrics(run, steps=500_000)
    assert write_report(run).stat().st_size < 300_000


def test_it_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(make_run(tmp_path / "run"))
    assert capsys.readouterr() == ("", "")


# The summary -----------------------------------------------------------------------------------------


def printed(run: Path) -> str:
    console = Console(width=200, file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123
    console.print(summary_table(run))
    return console.export_text()


def test_summary(full_run: Path) -> None:
    text = printed(full_run)
    low, high = wilson_interval(97, 100)
    assert "success rate, transfer cube" in text
    assert f"97 of 100 = 97.0% (95% interval {low:.1%} to {high:.1%})" in text
    assert "0.0143 (hold the last position 0.1795, mean action 0.2272)" in text
    assert "3.8 minutes, 1,500 steps" in text
    for path in ("report.html", "videos (2)", "checkpoint/act-train-last.pth"):
        assert f"{full_run}/{path}" in text


def test_summary_of_a_config_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run [bold]")
    text = printed(run)
    assert f"{run}/report.html" in text and "success rate" not in text
    assert text.count("none") == 2


# In a browser ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["full", "config only"])
def test_a_browser_shows_it_without_scrolling_sideways(
    browser: Browser, full_run: Path, tmp_path: Path, which: str, width: int, dark: bool
) -> None:
    path = full_run / "report.html" if which == "full" else write_report(make_run(tmp_path / ("long-name-" * 20)))
    browser.open(path, width, dark)
    browser.evaluate("document.querySelector('details').open = true")
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(CONTRAST) >= 4.5, "WCAG 2, level AA"


@pytest.mark.slow
def test_a_browser_plays_the_videos(browser: Browser, full_run: Path) -> None:
    browser.open(full_run / "report.html", 1280)
    if not browser.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.42E01E\"')"):
        pytest.skip("this Chromium was built without H.264")
    browser.wait_for("[...document.querySelectorAll('video')].every(video => video.readyState >= 2 || video.error)")
    assert browser.evaluate("[...document.querySelectorAll('video')].map(video => video.error)") == [
        None,
        None,
    ]
    assert browser.evaluate("document.querySelector('video').duration") == pytest.approx(0.5, abs=0.05)
    assert browser.evaluate("document.querySelector('video').videoWidth") == 64


@pytest.mark.slow
def test_a_copied_command_is_one_line(browser: Browser, full_run: Path) -> None:
    browser.open(full_run / "report.html", 390)
    copied = browser.evaluate(
        "(() => { getSelection().selectAllChildren(document.querySelectorAll('.command')[1]); "
        "return getSelection().toString(); })()"
    )
    assert copied.split()[:3] == ["bimact", "train", "--config"] and "\n" not in copied.strip()
