"""Which parts of the images a policy's actions depend on.

A patch of an image is covered with the image's mean colour, and the change of the predicted actions is measured, for
patches over the whole image (occlusion sensitivity: Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2). It needs
neither gradients nor attention, and so works with every encoder.
"""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from bimact.data.windows import WindowDataset
from bimact.encoder.base import crop_box
from bimact.errors import UserError
from bimact.files import check_writable, write_bytes
from bimact.policy.loading import LoadedPolicy
from bimact.policy.metadata import Execution
from bimact.progress import progress_bar

FOLDER = "saliency"  # of the pictures, in the run directory
_ROWS, _MOST_COLUMNS = 12, 48  # cells of a map; a patch covers 2 x 2 of them
_BATCH = 32  # patches that are predicted at once
_WIDTH = 480  # pixels of a picture
_DIM = 0.6  # brightness of the image below the colours
SCALE = 0.05  # change that has the brightest colour, where none is larger


def write_saliency(loaded: LoadedPolicy, dataset: WindowDataset, moments: int) -> list[dict[str, Any]]:
    """Draw the maps of some moments of the first demonstration, evenly spread, into `saliency/` of the results.

    Args:
        loaded: the policy.
        dataset: windows of demonstrations, of which those of the first episode are used.
        moments: number of them; at most as many as the demonstration has steps.

    Returns:
        for each camera and moment `camera`, `step`, `picture` (a path relative to the results) and `largest`, the
        largest change in the map.

    Raises:
        UserError: if the policy sees no colour camera.
    """
    cameras = [camera for camera in loaded.network.cameras if camera not in loaded.network.depth_cameras]
    if not cameras:
        raise UserError("--saliency is of colour images, and this policy sees none")
    index = dataset.index
    windows = np.flatnonzero(index.first == index.first[0])
    chosen = np.unique(windows[((np.arange(moments) + 0.5) / moments * len(windows)).astype(int)]).tolist()
    maps: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    with progress_bar("covering patches of images", len(chosen) * len(cameras)) as progress:
        for window in chosen:
            obs, _ = dataset.__getitems__([window])
            obs = {name: value.to(loaded.device) for name, value in obs.items()}
            for camera in cameras:
                step = int(index.rows[window] - index.first[window])
                newest = obs[f"image_{camera}"][0, -1].permute(1, 2, 0).cpu().numpy()
                top, left, height, width = crop_box(loaded.config.encoder.crop, *newest.shape[:2])
                seen = newest[top : top + height, left : left + width]
                maps[camera, step] = seen, occlusion_map(loaded, obs, camera)
                progress.advance()
    folder = loaded.results / FOLDER
    check_writable(folder)
    for old in folder.glob("*-[0-9]*.png"):  # of another checkpoint, with another scale
        old.unlink()
    scale = max(SCALE, *(float(changes.max()) for _, changes in maps.values()))
    pictures = []
    for (camera, step), (image, changes) in maps.items():
        name = f"{FOLDER}/{quote(camera, safe='')}-{step}.png"
        content = io.BytesIO()
        drawn(image, changes / scale).save(content, "PNG")
        write_bytes(loaded.results / name, content.getvalue())
        pictures.append({"camera": camera, "step": step, "picture": name, "largest": float(changes.max())})
    return pictures


@torch.inference_mode()
def occlusion_map(loaded: LoadedPolicy, obs: dict[str, Tensor], camera: str) -> np.ndarray:
    """How far the predicted actions move where an image is covered.

    Args:
        loaded: the policy.
        obs: a batch of one observation, as `WindowDataset` gives it; all images of its history are covered alike.
        camera: whose images are covered.

    Returns:
        (R, C): for each cell of the image, or of the encoder's crop of it, the absolute change of the normalised
        actions that would be executed (1 is a standard deviation of the training's actions, unless
        `action_normalization` is another one), in the mean over steps, dimensions, and the patches that cover the cell.

    Raises:
        UserError: if the image or the crop is less than two pixels high or wide.
    """
    name = f"image_{camera}"
    image = obs[name]
    top, left, height, width = crop_box(loaded.config.encoder.crop, *image.shape[-2:])
    if min(height, width) < 2:
        raise UserError(f"camera {camera}: the encoder sees {height}x{width} pixels, --saliency needs 2x2 or more")
    rows = min(_ROWS, height)
    columns = min(max(2, round(rows * width / height)), width, _MOST_COLUMNS)
    y = np.linspace(top, top + height, rows + 1).round().astype(int)
    x = np.linspace(left, left + width, columns + 1).round().astype(int)
    seen = image[..., top : top + height, left : left + width]
    cover = seen.float().mean(dim=(-2, -1), keepdim=True).round().to(image.dtype)
    execution = Execution.of(loaded.config)
    steps = execution.execute_steps
    if execution.temporal_ensemble:
        steps = loaded.config.ensemble_window or loaded.config.chunk_size
    std = loaded.network.action_normalizer.std

    others = {other: obs[f"image_{other}"] for other in loaded.network.cameras if other != camera}
    obs = obs | {f"tokens_{other}": tokens for other, tokens in loaded.network.encode_images(others).items()}

    def predicted(images: Tensor) -> Tensor:
        batch = {key: value.expand(len(images), *value.shape[1:]) for key, value in obs.items()}
        chunks: Tensor = loaded.network({**batch, name: images})[0]
        return chunks[:, :steps].float()

    plain = predicted(image)
    sums, counts = np.zeros((rows, columns)), np.zeros((rows, columns))
    corners = [(row, column) for row in range(rows - 1) for column in range(columns - 1)]
    for start in range(0, len(corners), _BATCH):
        patches = corners[start : start + _BATCH]
        covered = image.expand(len(patches), *image.shape[1:]).clone()
        for one, (row, column) in zip(covered, patches):
            one[..., y[row] : y[row + 2], x[column] : x[column + 2]] = cover[0]
        changes = ((predicted(covered) - plain).abs() / std).mean(dim=(1, 2)).cpu().numpy()
        for change, (row, column) in zip(changes, patches):
            sums[row : row + 2, column : column + 2] += change
            counts[row : row + 2, column : column + 2] += 1
    return sums / counts


def drawn(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """A picture of an image (H, W, 3) in dim grey, to which a map (R, C) from 0 to 1 adds ever brighter colours."""
    size = (_WIDTH, round(_WIDTH * image.shape[0] / image.shape[1]))
    grey = np.asarray(Image.fromarray(image).convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)
    smooth = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    color = 255 * colormaps["inferno"](np.asarray(smooth).clip(0, 1))[..., :3]
    return Image.fromarray((_DIM * grey[..., None] + color).round().clip(0, 255).astype(np.uint8))
