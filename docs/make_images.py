"""Make the pictures of the documentation, in docs/images, from the current build.

    python docs/make_images.py                    # all of them
    python docs/make_images.py view report        # some of them

It needs Chromium, and the simulation. Demonstrations and runs are made in build/images and kept there: some minutes the
first time. `report`, `latency` and `saliency` show a small run unless --run gives another (the page has `saliency` of
`bimact demo --task insertion`). `diagrams` needs the script of the npm
package mermaid:

    npm pack mermaid@11 && tar xf mermaid-11.*.tgz
    python docs/make_images.py diagrams --mermaid package/dist/mermaid.min.js
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser, find_chromium  # noqa: E402

IMAGES, WORK = ROOT / "docs" / "images", ROOT / "build" / "images"
DESKTOP, PHONE = 1100, 390
BLUE, ORANGE, GREY = "#2a6fb0", "#d9722e", "#8a8a8a"
# A network that trains in a minute on small images; the first run is as it should be, the others show one fault each.
CURVES = ["--config", "demo", "--encoder.channels", "16,32,32", "--encoder.crop", "null", "--hidden_dim", "64"]
CURVES += ["--dim_feedforward", "128", "--chunk_size", "50", "--batch_size", "16", "--log_frequency", "10"]
CURVES += ["--num_steps", "400", "--val_split", "0.17", "--keep_checkpoints", "best", "--tensorboard", "false"]
RUNS = {
    "good": ("a good run", ["--lr", "1e-3"]),
    "too_high_lr": (
        "learning rate 30 times too high",
        ["--lr", "0.03", "--warmup_steps", "0", "--grad_clip_norm", "null"],
    ),
    "kl": (
        "kl_weight 100: at first the KL loss is all",
        ["--lr", "1e-4", "--use_vae", "true", "--latent_dim", "8", "--n_vae_encoder_layers", "1", "--kl_weight", "100"],
    ),
    "overfit": (
        "one training demonstration: val_loss stays behind",
        ["--lr", "1e-3", "--max_episodes", "2", "--val_split", "0.5"],
    ),
}


class Studio:
    """Chromium, and what the pictures show: each is made once."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        executable = find_chromium()
        if executable is None:
            sys.exit("make_images needs Chromium: install the package chromium of the system")
        self.options = options
        self.folder = folder
        self.browser = Browser(executable, folder / "profile")

    def bimact(self, *arguments: str | Path, statuses: tuple[int, ...] = (0,), **variables: str) -> str:
        """Standard output of a command."""
        command = [sys.executable, "-m", "bimact", *map(str, arguments)]
        result = subprocess.run(command, cwd=WORK, env={**os.environ, **variables}, capture_output=True, text=True)
        if result.returncode not in statuses:
            sys.exit(f"{' '.join(command)}: {result.stdout}{result.stderr}")
        return result.stdout

    def made(self, name: str, *arguments: str, statuses: tuple[int, ...] = (0,)) -> Path:
        """A directory that a command makes in build/images, where it is not there yet; `{}` stands for it."""
        path = WORK / name
        if not path.exists():
            self.bimact(*(str(path) if word == "{}" else word for word in arguments), statuses=statuses)
        return path

    def demonstrations(self) -> Path:
        cameras = "top,right_wrist"
        options = ["--episodes", "5", "--image_size", "240x320", "--cameras", cameras]
        return self.made("cube", "record", "--task", "transfer_cube", *options, "--output_dir", "{}")

    def small_demonstrations(self) -> Path:
        options = ["--episodes", "6", "--image_size", "48x64"]
        return self.made("small", "record", "--task", "transfer_cube", *options, "--output_dir", "{}")

    def good_run(self) -> Path:
        dataset = ["--dataset_dir", str(self.small_demonstrations())]
        return self.made("curves/good", "train", *CURVES, *dataset, "--output_dir", "{}", *RUNS["good"][1])

    def open(self, path: Path, width: int = DESKTOP, dark: bool = False) -> None:
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.browser.call("Emulation.setEmulatedMedia", features=[scheme])
        self.browser.call("Page.navigate", url=path.as_uri())  # pages may change their address as they load
        self.browser.wait_for(
            f"document.readyState == 'complete' && location.href.startsWith({json.dumps(path.as_uri())})"
        )

    def photograph(self, name: str, height: int, width: int = DESKTOP, top: int = 0) -> None:
        """A part of the page, as PNG of 256 colours."""
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        taken = self.browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        save(Image.open(io.BytesIO(base64.b64decode(taken["data"]))), name)


def save(image: Image.Image, name: str) -> None:
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)


def save_figure(figure: plt.Figure, name: str) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png", facecolor="white")
    plt.close(figure)
    save(Image.open(buffer), name)


# One function for each picture ------------------------------------------------------------------------


def diagrams(studio: Studio) -> None:
    """The diagrams of the pages as SVG, for the site; from top to bottom, which is as wide as a page."""
    if studio.options.mermaid is None:
        sys.exit("the diagrams need --mermaid PATH/mermaid.min.js")
    script = Path(studio.options.mermaid).absolute().as_uri()
    page = studio.folder / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><script src="{script}"></script><body>')
    settings = {"startOnLoad": False, "theme": "neutral", "fontFamily": "sans-serif", "htmlLabels": False}
    settings["flowchart"] = {"htmlLabels": False, "useMaxWidth": False}
    for path in sorted((ROOT / "docs").glob("*.md")):
        source = re.search(r"^```mermaid\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)
        if source is None:
            continue
        studio.open(page)
        studio.browser.wait_for("typeof mermaid == 'object'")
        text = json.dumps(re.sub("</?b>", "", source[1]).replace("flowchart LR", "flowchart TB"))
        svg = studio.browser.evaluate(
            f"(mermaid.initialize({json.dumps(settings)}), mermaid.render('d', {text}).then(result => result.svg))"
        )
        (IMAGES / f"{path.stem}.svg").write_text(svg + "\n")


def check(studio: Studio) -> None:
    """The findings of `bimact check` in demonstrations with three faults."""
    from rich.console import Console
    from rich.terminal_theme import DEFAULT_TERMINAL_THEME
    from rich.text import Text

    faulty = studio.folder / "cups"
    shutil.copytree(studio.demonstrations(), faulty, ignore=shutil.ignore_patterns(".bimact_cache"))
    observations = np.load(faulty / "observations.npy", mmap_mode="r+")
    actions = np.load(faulty / "actions.npy", mmap_mode="r+")
    ends = np.cumsum(np.load(faulty / "rollout_length.npy"))
    observations["image_top"][ends[0] + 100 : ends[0] + 140] = observations["image_top"][ends[0] + 100]  # frozen
    part = slice(ends[2], ends[3])
    observations["state"][part, 6] = observations["state"][ends[2], 6]
    actions[part, 6] = actions[ends[2], 6]  # a gripper that does not move
    actions[ends[1] + 50 : ends[1] + 51, 2] += 1.5  # a jump
    observations.flush()
    actions.flush()
    printed = studio.bimact("check", faulty, statuses=(1,), FORCE_COLOR="1", COLUMNS="100", TERM="xterm-256color")
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    printed = printed[printed.index("Total timesteps") :]  # without the progress
    console.print(Text.from_ansi(printed.replace(str(faulty), "data/cups")))
    page = studio.folder / "check.html"
    form = '<!doctype html><meta charset="utf-8"><style>{stylesheet} body {{ background: #fff; margin: 16px }} pre '
    form += "{{ font: 13px/1.45 monospace; display: inline-block; margin: 0 }}</style><pre>{code}</pre>"
    page.write_text(console.export_html(theme=DEFAULT_TERMINAL_THEME, code_format=form))
    studio.open(page, 860)
    height = studio.browser.evaluate("document.querySelector('pre').getBoundingClientRect().bottom")
    studio.photograph("check.png", round(height) + 16, 860)


def view(studio: Studio) -> None:
    """An episode in `bimact view`."""
    page = WORK / "view.html"
    page.unlink(missing_ok=True)
    studio.bimact("view", studio.demonstrations(), "--episode", "1", "--export", page)
    studio.open(page)
    time.sleep(2)
    studio.browser.call(
        "Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", windowsVirtualKeyCode=39, modifiers=8
    )
    time.sleep(2)
    studio.photograph("view.png", 844)


def report(studio: Studio) -> None:
    """Curves, errors and a trajectory in the report of a run, by default of the good one of `curves`."""
    run = studio.good_run() if studio.options.run is None else Path(studio.options.run).absolute()
    studio.bimact("evaluate", "--run", run)
    studio.bimact("report", "--run", run)
    studio.open(run / "report.html")
    time.sleep(2)
    script = "[...document.querySelectorAll('h2')].map(h => [h.textContent, h.getBoundingClientRect().top + scrollY])"
    headings = studio.browser.evaluate(script)
    first = next(number for number, (title, _) in enumerate(headings) if "curves" in title)
    top, end = (round(place) for _, place in (headings[first], headings[first + 2]))  # curves and errors
    studio.photograph("report.png", end - top - 16, top=top - 16)


def sweep(studio: Studio) -> None:
    """The page of a sweep."""
    file = studio.folder / "sweep.yaml"
    rates = {"min": 1e-5, "max": 1e-2, "distribution": "log_uniform_values"}
    parameters = {"lr": rates, "batch_size": {"values": [8, 16, 32]}, "dropout": {"values": [0.0, 0.1, 0.3]}}
    file.write_text(json.dumps({"program": "scripts/train_act.py", "method": "bayes", "parameters": parameters}))
    content = {"metric": {"name": "val_loss", "goal": "minimize"}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))
    settings = [word for pair in zip(CURVES[2::2], CURVES[3::2]) if pair[0] != "--batch_size" for word in pair]
    settings[settings.index("400")] = "60"
    dataset = str(studio.small_demonstrations())
    command = ["sweep", str(file), "--dataset_dir", dataset, "--config", "demo", "--trials", "10", "--output_dir", "{}"]
    studio.open(studio.made("sweep", *command, *settings) / "report.html")
    time.sleep(1)
    top = "document.querySelector('h2').getBoundingClientRect().top + scrollY"
    studio.photograph("sweep.png", 900, top=round(studio.browser.evaluate(top)) - 30)  # below paths of this machine


def curves(studio: Studio) -> None:
    """Losses of a good run and of three bad ones."""
    figure, grid = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex=True)
    dataset = str(studio.small_demonstrations())
    for axes, (name, (title, settings)) in zip(grid.flat, RUNS.items()):
        run = studio.made(
            f"curves/{name}",
            "train",
            *CURVES,
            "--dataset_dir",
            dataset,
            "--output_dir",
            "{}",
            *settings,
            statuses=(0, 2),
        )
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for key, label, color, marker in (
            ("kl_loss", "kl_loss", GREY, None),
            ("action_loss", "action_loss", BLUE, None),
            ("val_loss", "val_loss", ORANGE, "o"),
        ):
            points = [(record["step"], record[key]) for record in records if record.get(key)]
            if points:
                axes.plot(*zip(*points), label=label, color=color, marker=marker, ms=3, lw=1.2)
        axes.set(title=title, yscale="log", ylim=(0.03, 200 if name == "kl" else 1.2))
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for axes in grid[1]:
        axes.set_xlabel("optimizer step")
    save_figure(figure, "curves.png")


def latency(studio: Studio) -> None:
    """The time of a chunk by runtime and precision."""
    table = studio.folder / "latency.json"
    run = studio.good_run() if studio.options.run is None else Path(studio.options.run)
    studio.bimact("latency", "--run", run.absolute(), "--json", table)
    rows = json.loads(table.read_text())["rows"]
    names = [f"{row['runtime']}, {row['precision']}" for row in rows]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(rows) + 1.2), layout="constrained")
    places = np.arange(len(rows))
    axes.barh(places, [row["p99_ms"] for row in rows], color="#c9d9ea", label="99th percentile")
    axes.barh(places, [row["median_ms"] for row in rows], color=BLUE, height=0.5, label="median")
    axes.axvline(20, color=ORANGE, lw=1.2, label="a control step at 50 Hz")
    axes.set(yticks=places, yticklabels=names, xlabel="milliseconds per chunk")
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    save_figure(figure, "latency.png")


def saliency(studio: Studio) -> None:
    """Six moments of `bimact evaluate --saliency`."""
    run = studio.good_run() if studio.options.run is None else Path(studio.options.run)
    studio.bimact("evaluate", "--run", run.absolute(), "--checkpoint", "last", "--saliency", "6")
    offline = json.loads((run / "evaluation.json").read_text())["offline"]
    pictures = offline["saliency"][:6]
    figure, axes = plt.subplots(2, 3, figsize=(8, 3.1), layout="constrained")
    for picture, panel in zip(pictures, axes.flat):
        panel.imshow(Image.open(run / picture["picture"]))
        panel.set_title(f"{picture['step'] / offline['fps']:.1f} s", fontsize=8, loc="left", pad=2)
        panel.axis("off")
    save_figure(figure, "saliency.png")


PICTURES: dict[str, Callable[[Studio], None]] = {
    function.__name__: function for function in (diagrams, check, view, report, sweep, curves, latency, saliency)
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the documentation.")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=f"of {', '.join(PICTURES)}; default: all")
    parser.add_argument("--mermaid", help="script of the package mermaid of npm, for the diagrams")
    parser.add_argument("--run", help="a run for `report`, `latency` and `saliency` (default: a small one)")
    options = parser.parse_args()
    unknown = set(options.pictures) - PICTURES.keys()
    if unknown:
        parser.error(f"no picture named {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    IMAGES.mkdir(exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bimact-images-", ignore_cleanup_errors=True) as folder:
        studio = Studio(options, Path(folder))
        try:
            for name in options.pictures or PICTURES:
                PICTURES[name](studio)
                print(f"{name}: done", flush=True)
        finally:
            studio.browser.close()


if __name__ == "__main__":
    main()
