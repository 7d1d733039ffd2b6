"""Whole runs of `bimact train`: waiting for data, memory over the dataset's size, time to the first step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from measuring import BUILD, Figure, Row
from policies import GUIDE, OF_GUIDE, OF_LEROBOT, overrides
from recordings import lerobot, two_cameras

GB = 10**9


def _train(chosen: list[str], output: Path) -> list[str]:
    """The command."""
    options = [f"--{key}={value}" for key, _, value in (override.partition("=") for override in chosen)]
    program = "from bimact.cli import main; main()"
    return [sys.executable, "-c", program, "train", "--config", str(GUIDE), f"--output_dir={output}", *options]


def waiting() -> Row:
    shares, details = [], []
    for name, chosen in (
        ("the guide's policy with the feature cache", overrides(OF_GUIDE, two_cameras(), num_steps=120)),
        ("LeRobot's default ACT on 480×640 images", overrides(OF_LEROBOT, lerobot(), num_steps=40)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            command = _train([*chosen, "log_frequency=20"], Path(folder) / "run")
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        values = [record["data_wait_share"] for record in records if "data_wait_share" in record]
        shares += values
        details.append(f"{name}: {Figure.of([100 * value for value in values])} % in spans of 20 steps")
    highest = Figure(max(shares), min(shares), max(shares))
    return Row("share of a training step spent waiting for data, highest of all spans", highest, "≤ 0.03", details)


def first_step() -> Row:
    """From the imports' end, with a warm feature cache, to the first step's end."""
    program = f"""
import json, sys, time
import open_clip
from bimact.config import load_config
from bimact.training.act_trainer import ActTrainer
from bimact.training.prepare import prepare_run
began = time.perf_counter()
trainer = ActTrainer(prepare_run(load_config({str(GUIDE)!r}, json.loads(sys.argv[1]))))
trainer.policy.train()
trainer.train_step(*next(trainer._steps_left()))
print("seconds", time.perf_counter() - began)
"""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = [*overrides(OF_GUIDE, two_cameras(), feature_cache="true"), f"output_dir={folder}/run"]
        for _ in range(4):
            command = [sys.executable, "-c", program, json.dumps(chosen)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds.append(float(output.rsplit("seconds ", 1)[1]))
    return Row(
        "seconds from the imports to the end of the guide's policy's first step, feature cache warm",
        Figure.of(seconds[1:]),
        "≤ 5",
    )


def memory() -> Row:
    """Proportional set size of a training and its loading processes, at most, on a large and a small dataset."""
    peaks = {}
    free = shutil.disk_usage(BUILD).free
    large = min(20 * GB, int(0.8 * free))
    for size in (large, 200 * 10**6):
        dataset = _of_size(size)
        try:
            with tempfile.TemporaryDirectory() as folder:
                # A small network on whole images, so that memory for the data would show.
                small = ("encoder.name=conv", "encoder.pretrained=null", "encoder.freeze=false", "hidden_dim=128")
                limits = {"num_steps": 300, "val_split": 0, "batch_size": 16, "temporal_context": 1, "num_workers": 2}
                chosen = overrides(("encoder.model_name=null", "cameras=[top]", *small), dataset, **limits)
                peaks[size] = _highest_memory(_train([*chosen, "encoder.image_size=[96,128]"], Path(folder) / "run"))
        finally:
            shutil.rmtree(dataset)
    ratio = peaks[large] / peaks[200 * 10**6]
    return Row(
        f"memory of a training on {large / GB:.3g} GB of images / on 0.2 GB",
        Figure(ratio, ratio, ratio),
        "≤ 1.1",
        [
            f"{peaks[large] / GB:.2f} GB against {peaks[200 * 10**6] / GB:.2f} GB (proportional set size of all "
            "processes, at most), 300 steps of 16 random frames"
        ],
    )


def _of_size(size: int) -> Path:
    """Recorded frames again and again, in the training guide's format, up to the given bytes of images."""
    recorded = two_cameras()
    path = BUILD / f"frames-{size}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    images = np.load(recorded / "observations.npy", mmap_mode="r")
    actions = np.load(recorded / "actions.npy")
    columns = [("image_top", *images.dtype["image_top"].subdtype), ("state", *images.dtype["state"].subdtype)]
    length = int(np.load(recorded / "rollout_length.npy")[0])
    episodes = max(1, round(size / length / columns[0][1].itemsize / np.prod(columns[0][2])))
    shape = (episodes * length,)
    written = np.lib.format.open_memmap(path / "observations.npy", "w+", np.dtype(columns), shape)
    start = written.offset
    del written
    with (path / "observations.npy").open("r+b") as file:
        file.seek(start)
        for episode in range(episodes):
            for row in range(0, length, 100):
                first = (episode * length + row) % (len(images) - 100)
                block = np.empty(min(100, length - row), np.dtype(columns))
                for name in ("image_top", "state"):
                    block[name] = images[name][first : first + len(block)]
                file.write(block.tobytes())
    np.save(path / "actions.npy", np.resize(actions, (episodes * length, actions.shape[1])))
    np.save(path / "rollout_length.npy", np.full(episodes, length))
    return path


def _highest_memory(command: list[str]) -> float:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    highest = 0.0
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            highest = max(highest, sum(one.memory_full_info().pss for one in family))
        except psutil.Error:
            pass
        time.sleep(0.05)  # the plot at the end takes memory for less than a second
    if process.returncode != 0:
        raise SystemExit(f"the training ended with status {process.returncode}")
    return highest
