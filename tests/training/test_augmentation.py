"""Random changes of training samples, against slow, plain references."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from bimact.config import AugmentationConfig, Config, to_config
from bimact.policy.act import ActPolicy
from bimact.training.augmentation import GREY, KINDS, NUMBERS, Augmentation, augment_images

NOTHING = AugmentationConfig(
    translate=0.0, brightness=None, contrast=None, saturation=None, hue=None, sharpness=None, max_num_transforms=5
)


def images(number: int = 3, height: int = 12, width: int = 16, low: int = 90, high: int = 140) -> torch.Tensor:
    """In the memory layout of a batch from the loader."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(low, high, (number, height, width, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def drawn(number: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(number, NUMBERS, generator=torch.Generator().manual_seed(seed))


def changed(before: torch.Tensor, numbers: torch.Tensor, box: tuple[int, int, int, int] | None = None, **kinds: object):
    after = before.clone(memory_format=torch.preserve_format)
    augment_images(after, numbers, dataclasses.replace(NOTHING, **kinds), box)
    return after


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
        ("sharpness", tv.adjust_sharpness),
    ],
)
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
def test_factors_are_those_of_torchvision(kind: str, function, factor: float) -> None:
    before = images()
    after = changed(before, drawn(), **{kind: [factor, factor]})
    expected = 255 * function(before.float() / 255, factor)
    assert (after.float() - expected).abs().max() <= 0.51  # rounding to whole grey levels


def test_colors_change_one_after_the_other() -> None:
    before, factors = images(), {"brightness": 1.2, "contrast": 0.8, "saturation": 1.4}
    after = changed(before, drawn(), **{kind: [factor, factor] for kind, factor in factors.items()})
    expected = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(before / 255, 1.2), 0.8), 1.4)
    assert (after.float() - 255 * expected).abs().max() <= 0.51


def test_hue_turns_about_the_grey_axis() -> None:
    grey = torch.full((3, 3, 12, 16), 77, dtype=torch.uint8)
    assert (changed(grey, drawn(), hue=[0.3, 0.3]).int() - 77).abs().max() <= 1
    before = images()
    assert (changed(before, drawn(), hue=[0.0, 0.0]).int() - before.int()).abs().max() <= 1
    there = changed(before, drawn(), hue=[0.1, 0.1])
    assert (there.int() - before.int()).abs().max() > 3
    assert (changed(there, drawn(), hue=[-0.1, -0.1]).int() - before.int()).abs().max() <= 3
    # A full turn in three parts comes back, and keeps the luma.
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    assert ((there * weights).sum(1) - (before * weights).sum(1)).abs().max() <= 1


def _shift_plainly(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    _, height, width = image.shape
    moved = torch.empty_like(image)
    for row in range(height):
        for column in range(width):
            source = min(max(row - down, 0), height - 1), min(max(column - right, 0), width - 1)
            moved[:, row, column] = image[:, source[0], source[1]]
    return moved


@given(st.integers(0, 1000))
def test_a_shift_moves_whole_pixels_and_repeats_the_edge(seed: int) -> None:
    before, numbers = images(), drawn(seed=seed)
    after = changed(before, numbers, translate=0.25)
    for number in range(len(before)):
        down, right = ((2 * numbers[number, :2] - 1) * 0.25 * torch.tensor([12, 16])).round().int().tolist()
        assert torch.equal(after[number], _shift_plainly(before[number], down, right))


def test_a_part_takes_pixels_from_around_it_and_nothing_else_changes() -> None:
    before, numbers, box = images(), drawn(), (3, 4, 6, 8)
    after = changed(before, numbers, box, translate=0.3)
    outside = torch.ones(12, 16, dtype=torch.bool)
    outside[3:9, 4:12] = False
    assert torch.equal(after[..., outside], before[..., outside])
    for number in range(len(before)):
        down, right = ((2 * numbers[number, :2] - 1) * 0.3 * torch.tensor([6, 8])).round().int().tolist()
        whole = _shift_plainly(before[number], down, right)
        assert torch.equal(after[number, :, 3:9, 4:12], whole[:, 3:9, 4:12])


@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_rotation_and_shift_are_those_of_torchvision(degrees: float) -> None:
    before = images(height=20, width=20)
    numbers = drawn()
    numbers[:, :3] = torch.tensor([0.75, 0.25, 1.0 - 1e-7])  # down by 0.5 · translate, left by as much
    after = changed(before, numbers, degrees=max(degrees, 1e-6), translate=0.2)
    expected = tv.affine(
        before.float(), angle=degrees, translate=[-2, 2], scale=1.0, shear=[0.0, 0.0],
        interpolation=tv.InterpolationMode.BILINEAR, center=[10.0, 10.0],
    )  # fmt: skip
    inner = (slice(None), slice(None), slice(8, 13), slice(8, 12))  # where no edge is repeated
    assert (after[inner].float() - expected[inner]).abs().max() <= 1.0


def test_perspective_moves_corners_inwards() -> None:
    before = images(1, 21, 31)
    numbers = drawn(1)
    numbers[:, 3:11] = 0.0
    assert torch.equal(changed(before, numbers, perspective=0.5), before)
    numbers[:, 3:11] = 1.0  # all corners: a smaller picture, edges repeated around it
    after = changed(before, numbers, perspective=0.5)
    assert torch.equal(after[..., 10, 15], before[..., 10, 15])
    # The upper left corner of the part is now at half of its distance from the middle.
    assert (after[..., 5, 7].int() - before[..., 0, 0].int()).abs().max() <= 25
    assert torch.equal(after[..., 0, 0], before[..., 0, 0])


def test_erasing_makes_a_grey_rectangle() -> None:
    before = images(64, 20, 30)
    after = changed(before, drawn(64), erasing=0.5)
    erased = (after == GREY).all(dim=1) & ~(before == GREY).all(dim=1)
    share = erased.flatten(1).float().mean(1)
    assert 20 <= (share > 0).sum() <= 44
    assert torch.equal(after[share == 0], before[share == 0])
    for mask in erased[share > 0.05]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert mask.sum() == len(rows) * len(columns)
    assert 0.02 < share[share > 0].mean() < 0.33


def test_as_many_kinds_as_asked_for_are_chosen() -> None:
    spans = {kind: [0.25, 0.25] if kind == "hue" else [0.5, 0.5] for kind in KINDS}
    before = images(200)
    unchanged = (changed(before, drawn(200), **spans, max_num_transforms=0) == before).all()
    assert unchanged
    only = [(changed(before, drawn(200), **{kind: spans[kind]}) != before).flatten(1).any(1) for kind in KINDS]
    assert all(one.all() for one in only)
    one_kind = changed(before, drawn(200), **spans, max_num_transforms=1)
    alone = [changed(before, drawn(200), **{kind: spans[kind]}) for kind in KINDS]
    each = torch.stack([((one.int() - one_kind.int()).abs() <= 1).flatten(1).all(1) for one in alone])
    assert (each.sum(0) == 1).all()  # exactly one kind, and which one differs
    assert (each.sum(1) > 20).all()


def policy_and_batch(**changes: object) -> tuple[Config, ActPolicy, dict[str, torch.Tensor]]:
    config = to_config(
        {**dataclasses.asdict(tiny_config()), "cameras": ["left", "right"], "state_dim": 4, "action_dim": 3, **changes}
    )
    policy = ActPolicy(config)
    policy.state_normalizer.mean.copy_(torch.arange(4.0))
    policy.state_normalizer.std.copy_(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    pixels = images(2 * 12, 8, 12).reshape(12, 2, 3, 8, 12)
    obs = {"image_left": pixels.clone(), "image_right": pixels.clone(), "state": torch.zeros(12, 2, 4)}
    return config, policy, obs


def copies(obs: dict[str, torch.Tensor], samples: slice = slice(None)) -> dict[str, torch.Tensor]:
    return {name: value[samples].clone() for name, value in obs.items()}


ALL_KINDS = {
    "augment": True, "augmentation": {"erasing": 0.3, "degrees": 5.0},
    "state_noise": 0.1, "state_dropout": 0.3, "camera_dropout": 0.3,
}  # fmt: skip


def test_a_sample_gets_the_same_in_whichever_batch_it_is() -> None:
    config, policy, obs = policy_and_batch(**ALL_KINDS)
    whole = Augmentation(config, policy)(copies(obs), 7, 12, slice(0, 12))
    for samples in (slice(0, 5), slice(5, 12)):
        part = Augmentation(config, policy)(copies(obs, samples), 7, 12, samples)
        for name, value in part.items():
            assert torch.equal(value, whole[name][samples]), name
    other = Augmentation(config, policy)(copies(obs), 8, 12, slice(0, 12))
    assert not torch.equal(other["image_left"], whole["image_left"])


@pytest.mark.parametrize("same_cameras", [False, True])
@pytest.mark.parametrize("same_history", [False, True])
def test_changes_are_shared_as_asked(same_cameras: bool, same_history: bool) -> None:
    config, policy, obs = policy_and_batch(
        augment=True, augmentation={"same_cameras": same_cameras, "same_history": same_history}
    )
    one = obs["image_left"][:1, :1].expand(12, 2, -1, -1, -1)
    after = Augmentation(config, policy)(
        {**obs, "image_left": one.clone(), "image_right": one.clone()}, 0, 12, slice(12)
    )
    assert torch.equal(after["image_left"], after["image_right"]) == same_cameras
    assert torch.equal(after["image_left"][:, 0], after["image_left"][:, 1]) == same_history


def test_noise_and_dropout_of_the_state() -> None:
    config, policy, obs = policy_and_batch(state_noise=0.5)
    many = {**obs, "state": torch.zeros(4000, 2, 4)}
    noisy = Augmentation(config, policy)(many, 0, 4000, slice(4000))["state"]
    assert noisy.mean().abs() < 0.1
    assert torch.allclose(noisy.std(dim=(0, 1)), 0.5 * policy.state_normalizer.std, rtol=0.05)
    config, policy, _ = policy_and_batch(state_dropout=0.25)
    dropped = Augmentation(config, policy)(many, 0, 4000, slice(4000))["state"]
    means = (dropped == policy.state_normalizer.mean).all(dim=(1, 2))
    assert 0.2 < means.float().mean() < 0.3
    assert (dropped[~means] == 0).all()


def test_a_camera_goes_black_and_one_is_left() -> None:
    config, policy, obs = policy_and_batch(camera_dropout=0.9)
    after = Augmentation(config, policy)(copies(obs), 0, 12, slice(12))
    black = torch.stack([(after[f"image_{camera}"] == 0).flatten(1).all(1) for camera in ("left", "right")])
    assert black.sum(0).max() == 1
    assert 6 <= black.sum() <= 12


def test_cached_features_of_a_dropped_camera_are_those_of_a_black_image() -> None:
    encoder = {**dataclasses.asdict(tiny_config().encoder), "freeze": True}
    config, policy, obs = policy_and_batch(camera_dropout=0.5, encoder=encoder, image_size=[8, 12])
    black = policy.image_encoder.trunk(torch.zeros(1, 3, 8, 12, dtype=torch.uint8))[0]
    features = {f"features_{camera}": torch.randn(12, 2, *black.shape) for camera in ("left", "right")}
    before = {"state": obs["state"], **features}
    after = Augmentation(config, policy)(dict(before), 0, 12, slice(12))
    for camera in ("left", "right"):
        name = f"features_{camera}"
        same = (after[name] == before[name]).flatten(1).all(1)
        assert 0 < same.sum() < 12
        assert torch.allclose(after[name][~same], black.expand_as(after[name][~same]))


def test_nothing_is_drawn_without_augmentation() -> None:
    config, policy, obs = policy_and_batch()
    assert Augmentation(config, policy)(obs, 0, 12, slice(12)) is obs
