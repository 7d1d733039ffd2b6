"""Random changes of training samples, on the device: images, state, camera dropout.

The change of a sample depends on the seed, the step and its index in the step alone: it is the same in a resumed run
and with any number of processes. Letters: N images, P random numbers per image; B, T, H, W, S as in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bimact.config import AugmentationConfig, Config
from bimact.errors import UserError
from bimact.policy.act import ActPolicy, Observation
from bimact.training.randomness import generator_of

KINDS = ("brightness", "contrast", "saturation", "hue", "sharpness")
NUMBERS = 3 + 8 + 2 * len(KINDS) + 5  # of an image: shift and angle, four corners, factors and their choice, erasing
GREY = 128  # of erased rectangles
_LUMA = torch.tensor([0.2989, 0.587, 0.114])  # as torchvision's rgb_to_grayscale
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


class Augmentation:
    """Changes the observations of training batches by the settings `augment`, `state_noise` and the dropouts.

    Args:
        config: of the run, complete.
        policy: its encoder's crop is the part of the images that is changed; the policy itself stays unchanged.
    """

    def __init__(self, config: Config, policy: ActPolicy) -> None:
        self._config, self._policy = config, policy
        self._black: dict[str, Tensor] = {}  # camera → features of a black image (rows, columns, C)

    @property
    def is_active(self) -> bool:
        config = self._config
        return config.augment or max(config.state_noise, config.state_dropout, config.camera_dropout) > 0

    def __call__(self, obs: Observation, step: int, num_windows: int, samples: slice) -> Observation:
        """The changed observation; images are changed in place.

        Args:
            obs: a batch (B, ...) on the device.
            step: optimizer step.
            num_windows: samples of the whole step, over all processes.
            samples: those of this batch.
        """
        if not self.is_active:
            return obs
        config, cameras = self._config, self._policy.cameras
        context = config.temporal_context
        generator = generator_of(config.seed, step, "augmentation")
        noise = torch.randn(num_windows, context, obs["state"].shape[-1], generator=generator)[samples]
        kept = torch.rand(num_windows, 1 + len(cameras), generator=generator)[samples]
        images = torch.rand(num_windows, max(1, len(cameras)), context, NUMBERS, generator=generator)[samples]
        if config.augmentation.same_cameras:
            images = images[:, :1].expand(-1, len(cameras), -1, -1)
        if config.augmentation.same_history:
            images = images[:, :, :1].expand(-1, -1, context, -1)
        device = obs["state"].device
        obs = dict(obs)
        normalizer = self._policy.state_normalizer
        obs["reference"] = obs["state"][:, -1]
        if config.state_noise:
            obs["state"] = obs["state"] + config.state_noise * normalizer.std * noise.to(device)
        if config.state_dropout:
            dropped = (kept[:, 0] < config.state_dropout).to(device)
            obs["state"] = torch.where(dropped[:, None, None], normalizer.mean, obs["state"])
        if config.augment:
            for number, camera in enumerate(cameras):
                pixels = obs.get(f"image_{camera}")
                if pixels is not None and camera not in self._policy.depth_cameras:
                    box = self._policy.image_encoder.crop_box(*pixels.shape[-2:])
                    drawn = images[:, number].flatten(0, 1).to(device)
                    augment_images(pixels.view(-1, *pixels.shape[2:]), drawn, config.augmentation, box)
        if config.camera_dropout and len(cameras) > 1:
            self._drop_cameras(obs, kept[:, 1:].to(device))
        return obs

    def _drop_cameras(self, obs: Observation, kept: Tensor) -> None:
        """Cameras whose number (B, V) is below the probability become black, but for the one with the largest."""
        dropped = kept < self._config.camera_dropout
        dropped.scatter_(1, kept.argmax(dim=1, keepdim=True), False)
        for number, camera in enumerate(self._policy.cameras):
            which = dropped[:, number].nonzero().flatten()
            if not len(which):
                continue
            if f"image_{camera}" in obs:
                obs[f"image_{camera}"][which] = 0
            else:
                name = f"features_{camera}"
                features = obs[name].clone()
                features[which] = self._black_features(camera, features)
                obs[name] = features

    @torch.no_grad()
    def _black_features(self, camera: str, like: Tensor) -> Tensor:
        if camera not in self._black:
            size = self._config.image_size or self._policy.image_encoder.image_size
            if size is None:
                raise UserError(
                    "camera_dropout with cached features needs images of one size: set encoder.image_size, or "
                    "feature_cache to false"
                )
            image = torch.zeros(1, 3, *size, dtype=torch.uint8, device=like.device)
            self._black[camera] = self._policy.image_encoder.trunk(image)[0].to(like.dtype)
        return self._black[camera]


def augment_images(
    images: Tensor, drawn: Tensor, settings: AugmentationConfig, box: tuple[int, int, int, int] | None = None
) -> None:
    """Change images in place, each with its own random numbers.

    Shift, rotation and perspective take pixels from the whole image; brightness, contrast (about the mean grey),
    saturation (about each pixel's grey) and hue (a rotation about the grey axis in YIQ) are one affine map of the
    colours, which is clamped once; then sharpness, as in torchvision, and erasing.

    Args:
        images: (N, 3, H, W) uint8.
        drawn: (N, P) uniform in [0, 1), on the images' device.
        settings: kinds and ranges.
        box: top, left, height and width of the part that is used: ranges are of it, and nothing else is changed.
    """
    box = top, left, height, width = box or (0, 0, *images.shape[-2:])
    part = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
    signed = 2 * drawn - 1
    shift = signed[:, :2] * settings.translate * torch.tensor([height, width], device=drawn.device)
    if settings.degrees or settings.perspective:
        angle = math.radians(settings.degrees) * signed[:, 2]
        pixels = _resampled(images.float(), _transforms(shift, angle, drawn[:, 3:11], settings.perspective, box), box)
    elif settings.translate:
        pixels = _shifted(images, shift.round().long(), box)
    else:
        pixels = images[part]
    factors, used = _factors(drawn[:, 11 : 11 + 2 * len(KINDS)], settings)
    if used[:, :4].any():
        pixels = _with_colors(pixels, factors)
    if used[:, 4].any():
        pixels = _sharpened(pixels.float(), factors[:, 4])
    if pixels.dtype != torch.uint8:
        pixels = pixels.round_().clamp_(0, 255)
    images[part] = pixels.to(torch.uint8)
    if settings.erasing:
        _erase(images[part], drawn[:, -5:], settings.erasing)


def _shifted(images: Tensor, shift: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The part of each image, moved down and right by whole pixels (N, 2); beyond the border its edge is repeated."""
    top, left, height, width = box
    rows = (torch.arange(top, top + height, device=shift.device) - shift[:, :1]).clamp_(0, images.shape[-2] - 1)
    columns = (torch.arange(left, left + width, device=shift.device) - shift[:, 1:]).clamp_(0, images.shape[-1] - 1)
    number = torch.arange(len(images), device=shift.device)
    # Channels last: each pixel's three bytes are beside each other in a batch from the loader.
    return images.permute(0, 2, 3, 1)[number[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _transforms(
    shift: Tensor, angle: Tensor, corners: Tensor, perspective: float, box: tuple[int, int, int, int]
) -> Tensor:
    """(N, 3, 3): pixel positions relative to the middle of the part, after the change → before it."""
    _, _, height, width = box
    number = len(shift)
    inverse = torch.zeros(number, 3, 3, device=shift.device)
    cos, sin = angle.cos(), angle.sin()
    inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 0], inverse[:, 1, 1] = cos, sin, -sin, cos
    inverse[:, 0, 2] = -(cos * shift[:, 1] + sin * shift[:, 0])
    inverse[:, 1, 2] = sin * shift[:, 1] - cos * shift[:, 0]
    inverse[:, 2, 2] = 1
    if not perspective:
        return inverse
    # Each corner moves inwards by up to half of distortion_scale; the homography that maps it back (8 equations).
    half = torch.tensor([width / 2, height / 2], device=shift.device)
    signs = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], device=shift.device)
    before = (signs * half).expand(number, 4, 2)
    after = before * (1 - perspective * corners.view(number, 4, 2))
    x, y = after.unbind(-1)
    u, v = before.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    equations = torch.stack(
        [torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1),
         torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)], 2).flatten(1, 2)  # fmt: skip
    solved = torch.linalg.solve(equations, torch.stack([u, v], -1).flatten(1)[..., None])[..., 0]
    homography = torch.cat([solved, solved.new_ones(number, 1)], 1).view(number, 3, 3)
    return homography @ inverse


def _resampled(images: Tensor, transforms: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The part of each image (N, 3, H, W) float after its transform, bilinear; the edge is repeated."""
    top, left, height, width = box
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    grid = torch.stack([*reversed(torch.meshgrid(y, x, indexing="ij")), torch.ones(height, width, device=y.device)], -1)
    places = grid.flatten(0, 1) @ transforms.mT  # (N, h·w, 3)
    places = places[..., :2] / places[..., 2:].clamp_min(1e-6)
    middle = torch.tensor([left + (width - 1) / 2, top + (height - 1) / 2], device=y.device)
    size = torch.tensor([images.shape[-1], images.shape[-2]], device=y.device)
    normalized = (2 * (places + middle) + 1) / size - 1
    return F.grid_sample(
        images, normalized.view(-1, height, width, 2), mode="bilinear", padding_mode="border", align_corners=False
    )


def _factors(drawn: Tensor, settings: AugmentationConfig) -> tuple[Tensor, Tensor]:
    """Factors (N, 5) of the kinds, 1 (of hue 0) where a kind is not used, and which ones are used (N, 5)."""
    spans: Sequence[list[float] | None] = [getattr(settings, kind) for kind in KINDS]
    values, order = drawn.chunk(2, dim=1)
    possible = torch.tensor([span is not None for span in spans], device=drawn.device)
    # The kinds with the smallest numbers are used: a random choice without replacement.
    rank = (order + (~possible) * 2).argsort(dim=1).argsort(dim=1)
    used = (rank < settings.max_num_transforms) & possible
    low = torch.tensor([1.0 if span is None else span[0] for span in spans], device=drawn.device)
    high = torch.tensor([1.0 if span is None else span[1] for span in spans], device=drawn.device)
    unchanged = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0], device=drawn.device)
    return torch.where(used, low + (high - low) * values, unchanged), used


def _with_colors(pixels: Tensor, factors: Tensor) -> Tensor:
    """Pixels (N, 3, h, w), of 0 to 255 → float with brightness, contrast, saturation and hue changed, clamped."""
    brightness, contrast, saturation, hue, _ = factors.unbind(1)
    luma, to_yiq = _LUMA.to(pixels.device), _TO_YIQ.to(pixels.device)
    flat = pixels.permute(0, 2, 3, 1).flatten(1, 2).float()  # (N, h·w, 3)
    grey = (flat.mean(dim=1) @ luma) * brightness  # after the brightness
    eye = torch.eye(3, device=pixels.device)
    blend = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * luma.expand(3, 3)
    turn = torch.zeros(len(pixels), 3, 3, device=pixels.device)
    angle = 2 * math.pi * hue
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    colors = torch.linalg.inv(to_yiq) @ turn @ to_yiq @ blend  # (N, 3, 3)
    offset = (colors.sum(dim=2) * (grey * (1 - contrast))[:, None])[:, None]
    changed = torch.baddbmm(offset, flat, (colors * (brightness * contrast)[:, None, None]).mT)
    return changed.clamp_(0, 255).unflatten(1, pixels.shape[-2:]).permute(0, 3, 1, 2)


def _sharpened(pixels: Tensor, factor: Tensor) -> Tensor:
    """Pixels (N, 3, h, w) float, blended with a blurred copy; the outermost pixels stay (as torchvision)."""
    if min(pixels.shape[-2:]) < 3:
        return pixels
    kernel = torch.ones(3, 1, 3, 3, device=pixels.device)
    kernel[:, :, 1, 1] = 5
    blurred = pixels.clone()
    blurred[..., 1:-1, 1:-1] = F.conv2d(pixels, kernel / 13, groups=3)
    return torch.lerp(blurred, pixels, factor.view(-1, 1, 1, 1))


def _erase(pixels: Tensor, drawn: Tensor, probability: float) -> None:
    """Make a rectangle of 2 to 33% of the area, of an aspect ratio of 0.3 to 3.3, grey."""
    height, width = pixels.shape[-2:]
    area = (0.02 + 0.31 * drawn[:, 1]) * height * width
    aspect = (math.log(0.3) + (math.log(3.3) - math.log(0.3)) * drawn[:, 2]).exp()
    high = (area * aspect).sqrt().round().clamp(1, height)
    wide = (area / aspect).sqrt().round().clamp(1, width)
    top, left = ((drawn[:, 3] * (height - high + 1)).floor(), (drawn[:, 4] * (width - wide + 1)).floor())
    rows = torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None]) & (drawn[:, :1] < probability)
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    pixels.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], GREY)
