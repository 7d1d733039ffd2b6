"""Which parts of the images a policy's actions depend on.

A patch of an image is covered with the image's mean colour, and the change of the predicted actions is measured, for
patches over the whole image (occlusion sensitivity: Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2). It needs
neither gradients nor attention, and so works with every encoder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from bimact.data.windows import WindowDataset
from bimact.encoder.base import crop_box
from bimact.errors import UserError
from bimact.files import check_writable
from bimact.policy.loading import LoadedPolicy
from bimact.policy.metadata import Execution
from bimact.progress import progress_bar

FOLDER = "saliency"  # of the pictures, in the run directory
_ROWS = 12  # cells of a map from top to bottom; a patch covers 2 x 2 of them
_BATCH = 32  # patches that are predicted at once
_WIDTH = 480  # pixels of a picture
_STRENGTH = 0.85  # of the colour where the change is largest


def write_saliency(loaded: LoadedPolicy, dataset: WindowDataset, moments: int) -> list[dict[str, Any]]:
    """Draw the maps of some moments of the first demonstration, evenly spread, into `saliency/` of the results.

    Args:
        loaded: the policy.
        dataset: windows of demonstrations, of which those of the first episode are used.
        moments: number of them.

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
    chosen = windows[((np.arange(moments) + 0.5) / moments * len(windows)).astype(int)].tolist()
    maps: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    with progress_bar("covering patches of images", len(chosen) * len(cameras)) as progress:
        for window in chosen:
            obs, _ = dataset.__getitems__([window])
            obs = {name: value.to(loaded.device) for name, value in obs.items()}
            for camera in cameras:
                step = int(index.rows[window] - index.first[window])
                maps[camera, step] = _seen(loaded, obs, camera), occlusion_map(loaded, obs, camera)
                progress.advance()
    folder = loaded.results / FOLDER
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    largest = max(float(changes.max()) for _, changes in maps.values()) or 1.0
    pictures = []
    for (camera, step), (image, changes) in maps.items():
        path = folder / f"{camera}-{step}.png"
        _drawn(image, changes / largest).save(path)
        picture = f"{FOLDER}/{path.name}"
        pictures.append({"camera": camera, "step": step, "picture": picture, "largest": float(changes.max())})
    return pictures


@torch.inference_mode()
def occlusion_map(loaded: LoadedPolicy, obs: dict[str, Tensor], camera: str) -> np.ndarray:
    """How far the predicted actions move where an image is covered.

    Args:
        loaded: the policy.
        obs: a batch of one observation, as `WindowDataset` gives it; all images of its history are covered alike.
        camera: whose images are covered.

    Returns:
        (R, C): for each cell of the image, or of the encoder's crop of it, the absolute change of the actions that
        would be executed, in standard deviations of the training's actions, in the mean over steps, dimensions, and
        the patches that cover the cell.
    """
    name = f"image_{camera}"
    image = obs[name]
    top, left, height, width = crop_box(loaded.config.encoder.crop, *image.shape[-2:])
    rows = min(_ROWS, height)
    columns = min(max(2, round(rows * width / height)), width)
    y = np.linspace(top, top + height, rows + 1).round().astype(int)
    x = np.linspace(left, left + width, columns + 1).round().astype(int)
    seen = image[..., top : top + height, left : left + width]
    cover = seen.float().mean(dim=(-2, -1), keepdim=True).round().to(image.dtype)
    execution = Execution.of(loaded.config)
    steps = loaded.config.chunk_size if execution.temporal_ensemble else execution.execute_steps
    std = loaded.network.action_normalizer.std

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


def _seen(loaded: LoadedPolicy, obs: dict[str, Tensor], camera: str) -> np.ndarray:
    """The newest image (H, W, 3) uint8 of an observation, as far as the encoder sees it."""
    image = obs[f"image_{camera}"][0, -1]
    top, left, height, width = crop_box(loaded.config.encoder.crop, *image.shape[-2:])
    return image[:, top : top + height, left : left + width].permute(1, 2, 0).cpu().numpy()


def _drawn(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """A picture of an image (H, W, 3) in grey, coloured by a map (R, C) from 0 to 1."""
    size = (_WIDTH, round(_WIDTH * image.shape[0] / image.shape[1]))
    grey = np.asarray(Image.fromarray(image).convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)
    smooth = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    share = np.asarray(smooth).clip(0, 1)[..., None]
    color = 255 * colormaps["inferno"](share[..., 0])[..., :3]
    strength = _STRENGTH * np.sqrt(share)
    pixels = (1 - strength) * grey[..., None] + strength * color
    return Image.fromarray(pixels.round().astype(np.uint8))
