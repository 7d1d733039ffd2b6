"""Frames of a dataset beside what the encoder sees of them in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.nn import functional as F

from bimact import fonts
from bimact.config import Config
from bimact.encoder.base import crop_box, input_size
from bimact.training.augmentation import KINDS, NUMBERS, augment_images

VIEWS = 5  # augmented ones of each frame
_INK, _CROP = "#23272e", "#e0431b"
_PANEL = 2.0  # inches: width


def augmentation_figure(frames: Mapping[str, np.ndarray], config: Config, seed: int = 0) -> Figure:
    """A row for each frame: as recorded, as the encoder sees it, and augmented `VIEWS` times as in training.

    Args:
        frames: camera → (N, H, W, 3) uint8.
        config: of the training: `encoder.crop`, `encoder.image_size`, `augmentation`.
        seed: of the changes.
    """
    rows = [(camera, image) for camera, images in frames.items() for image in images]
    heights = [_PANEL * image.shape[0] / image.shape[1] + 0.08 for _, image in rows]
    with rc_context({"font.family": fonts.families(), "text.parse_math": False}):
        figure = Figure(figsize=(_PANEL * (2 + VIEWS) + 0.4, sum(heights) + 0.9), layout="constrained")
        panels = figure.subplots(len(rows), 2 + VIEWS, squeeze=False, height_ratios=heights)
        for number, (camera, image) in enumerate(rows):
            top, left, height, width = box = crop_box(config.encoder.crop, *image.shape[:2])
            drawn = torch.rand(1 + VIEWS, NUMBERS, generator=torch.Generator().manual_seed(seed + number))
            views = torch.from_numpy(np.stack([image] * (1 + VIEWS))).permute(0, 3, 1, 2)
            augment_images(views[1:], drawn[1:], config.augmentation, box)
            seen = views[..., top : top + height, left : left + width].float()
            size = input_size(dataclasses.replace(config.encoder, crop=None)) or (height, width)
            if size != (height, width):
                seen = F.interpolate(seen, size, mode="bilinear", antialias=True)
            pictures = seen.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
            for axes, picture in zip(panels[number], [image, *pictures]):
                axes.imshow(picture)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            if box != (0, 0, *image.shape[:2]):
                edge = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=_CROP, linewidth=1.5)
                panels[number, 0].add_patch(edge)
            panels[number, 0].set_ylabel(fonts.drawable(camera), fontsize=9, color=_INK)
        recorded = f"recorded, {rows[0][1].shape[0]}×{rows[0][1].shape[1]}"
        titles = [
            recorded,
            f"encoder's input, {size[0]}×{size[1]}",
            *(f"augmented {view + 1}" for view in range(VIEWS)),
        ]
        for axes, title in zip(panels[0], titles):
            axes.set_title(title, fontsize=9, loc="left", color=_INK)
        figure.suptitle(kinds_line(config), x=0.01, ha="left", fontsize=10, color=_INK)
    return figure


def kinds_line(config: Config) -> str:
    """The kinds of augmentation and their ranges, in one line."""
    settings = config.augmentation
    told = [f"shift up to {settings.translate:.0%}"] if settings.translate else []
    told += [f"rotation up to {settings.degrees:g}°"] if settings.degrees else []
    told += [f"perspective {settings.perspective:g}"] if settings.perspective else []
    spans = {kind: getattr(settings, kind) for kind in KINDS if getattr(settings, kind) is not None}
    if spans and settings.max_num_transforms:
        most = min(settings.max_num_transforms, len(spans))
        told.append(f"{most} of " + ", ".join(f"{kind} {low:g} to {high:g}" for kind, (low, high) in spans.items()))
    told += [f"a grey rectangle in {settings.erasing:.0%}"] if settings.erasing else []
    return "; ".join(told) or "no kind of augmentation is set"
