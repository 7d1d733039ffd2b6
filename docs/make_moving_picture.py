"""Make the README's moving picture: two episodes side by side, as an animated WebP.

    bimact evaluate --run runs/demo-transfer_cube --task transfer_cube --rollouts 5 --video 5
    bimact evaluate --run runs/demo-insertion --task insertion --rollouts 5 --video 5
    python docs/make_moving_picture.py runs/demo-transfer_cube runs/demo-insertion

Of a run it shows the first filmed rollout that succeeded, of a dataset the first episode of its first camera.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

import bimact
from bimact.run_directory import Run
from bimact.sim.base import MAX_REWARD

OUTPUT = Path(__file__).parent / "images" / "tasks.webp"
ROWS = (0.17, 0.83)  # of the camera's image: the table, without the floor around it
HEIGHT, GAP = 220, 8  # pixels
FPS = 12.5  # of the picture; time runs at the robot's pace
LAST = 1.5  # seconds of the last image
LARGEST = 3_000_000  # bytes


def images_of(source: Path) -> Iterator[np.ndarray]:
    """Images (H, W, 3) uint8 of an episode at `FPS`."""
    if (source / "config.yaml").exists():
        results = json.loads((Run.existing(source).path / "evaluation.json").read_text())
        rollouts = [rollout for task in results.get("rollouts", {}).values() for rollout in task["each"]]
        successes = (r for r in rollouts if r.get("video") and r["highest_reward"] == MAX_REWARD)
        success = next(successes, None)
        if success is None:
            sys.exit(
                f"{source} has no filmed rollout that succeeded: bimact evaluate --run {source} --task T --video 5"
            )
        with av.open(str(source / success["video"])) as video:
            stream = video.streams.video[0]
            step = float(stream.average_rate) / FPS
            frames = (frame.to_ndarray(format="rgb24") for frame in video.decode(stream))
            yield from every(frames, step)
    else:
        dataset = bimact.open_dataset(source, episodes=["0"])
        images = next(iter(dataset.images.values()))
        yield from every((np.asarray(images[row]) for row in range(dataset.num_steps)), dataset.fps / FPS)


def table_of(source: Path) -> Iterator[np.ndarray]:
    for image in images_of(source):
        yield image[round(ROWS[0] * len(image)) : round(ROWS[1] * len(image))]


def every(frames: Iterator[np.ndarray], step: float) -> Iterator[np.ndarray]:
    """Each `step`-th frame; `step` need not be whole."""
    wanted = 0.0
    for index, frame in enumerate(frames):
        if index >= wanted:
            yield frame
            wanted += step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("left", type=Path)
    parser.add_argument("right", type=Path)
    options = parser.parse_args()
    pairs = itertools.zip_longest(table_of(options.left), table_of(options.right))
    canvas, pictures = None, []
    for images in pairs:
        if canvas is None:
            sizes = [(round(HEIGHT * image.shape[1] / image.shape[0]), HEIGHT) for image in images]
            canvas = Image.new("RGBA", (sizes[0][0] + GAP + sizes[1][0], HEIGHT))  # transparent between the two
        for image, size, x in zip(images, sizes, (0, sizes[0][0] + GAP)):
            if image is not None:  # the shorter episode stays at its last image
                canvas.paste(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), (x, 0))
        pictures.append(canvas.copy())
    durations = [round(1000 / FPS)] * (len(pictures) - 1) + [round(1000 * LAST)]
    OUTPUT.parent.mkdir(exist_ok=True)
    for quality in range(80, 20, -10):
        pictures[0].save(
            OUTPUT, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=quality, method=4
        )
        if OUTPUT.stat().st_size < LARGEST:
            break
    print(f"{OUTPUT}: {len(pictures)} images of {canvas.size}, {OUTPUT.stat().st_size / 1e6:.1f} MB, quality {quality}")


if __name__ == "__main__":
    main()
