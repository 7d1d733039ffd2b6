"""The list of all checks: small functions of the facts, each with the codes that it can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from bimact.check import cameras, episodes, images, motion, timing, values
from bimact.check.facts import Facts
from bimact.check.findings import Finding

Check: TypeAlias = Callable[[Facts], Iterator[Finding]]

_OF_IMAGES: dict[Check, tuple[str, ...]] = {
    images.blank_images: ("blank-image",),
    images.frozen_cameras: ("frozen-camera",),
    images.slow_cameras: ("slow-camera",),
    images.glitches: ("image-glitch",),
    cameras.same_cameras: ("same-camera",),
    cameras.swapped_cameras: ("swapped-cameras",),
    cameras.changed_images: ("changed-image",),
    cameras.odd_views: ("odd-view",),
    episodes.color_order: ("color-order",),
}

_OF_VECTORS: dict[Check, tuple[str, ...]] = {
    episodes.settings: ("config-mismatch", "action-size"),
    episodes.short_episodes: ("short-episode",),
    episodes.types: ("dtype",),
    values.nonfinite: ("nan",),
    values.far_values: ("far-value",),
    values.jumps: ("jump", "wrapped-angle"),
    values.constant: ("constant",),
    values.frozen_dimensions: ("frozen-dimension",),
    values.still_grippers: ("still-gripper",),
    values.saturated: ("saturated",),
    values.out_of_reach: ("out-of-reach",),
    values.unit_mismatch: ("unit-mismatch",),
    motion.copied_states: ("copied-state",),
    motion.delays: ("late-action", "long-lag", "odd-lag"),
    motion.frozen_states: ("frozen-state",),
    motion.still_episodes: ("still-episode",),
    motion.idle_ends: ("idle-head", "idle-tail"),
    timing.no_fps: ("no-fps",),
    timing.wrong_fps: ("wrong-fps",),
    timing.uneven_timestamps: ("unordered-timestamps", "dropped-steps", "irregular-timestamps"),
    episodes.duplicates: ("duplicate-episode",),
    episodes.odd_lengths: ("odd-length",),
    episodes.dominant_episodes: ("dominant-episode",),
    episodes.tasks: ("missing-task", "no-task", "several-tasks"),
}


def checks(*, images: bool) -> dict[Check, tuple[str, ...]]:
    """Each check and what it looks for; without those of images, if these were not read."""
    return {**_OF_VECTORS, **_OF_IMAGES} if images else dict(_OF_VECTORS)
