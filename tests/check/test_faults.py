"""Each fault, done to demonstrations of which nothing is odd, is found where it is, and nothing else is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from demonstrations import Demonstrations, clean
from hypothesis import given, settings
from hypothesis import strategies as st

from bimact.check.dataset import checks
from bimact.check.kinds import INFO, KINDS, READING, WARNING

Place = tuple[str, "int | None", "int | None"]  # code, episode, step
Fault = Callable[[Demonstrations], object]


# Values --------------------------------------------------------------------------------------------


def nan_in_action(demos: Demonstrations) -> None:
    demos.action[2][[40, 41], 3] = np.nan


def infinite_state(demos: Demonstrations) -> None:
    demos.state[0][0, 13] = -np.inf


def reading_far_off(demos: Demonstrations) -> None:
    demos.state[1][60:, 2] = 900


def spike(demos: Demonstrations) -> None:
    demos.action[3][50, 4] += 2


def spike_of_unused_joint(demos: Demonstrations) -> None:
    unused_joint(demos)
    demos.state[3][50, 3] = 7


def teleport(demos: Demonstrations) -> None:
    for part in (demos.state, demos.action):
        part[4][70:, 8] -= 1.5


def wrapped_angle(demos: Demonstrations) -> None:
    for part in (*demos.state, *demos.action):
        turned = 2.5 + np.linspace(0, 1.5, len(part))
        part[:, 5] = np.where(turned > np.pi, turned - 2 * np.pi, turned)


def unused_joint(demos: Demonstrations) -> None:
    for part in (*demos.state, *demos.action):
        part[:, 3] = 0.5


def command_not_recorded(demos: Demonstrations) -> None:
    for part in demos.action:
        part[:, 3] = 0


def joint_not_read(demos: Demonstrations) -> None:
    for part in demos.state:
        part[:, 10] = 0


def nothing_grasped(demos: Demonstrations) -> None:
    for part in (demos.state, demos.action):
        part[2][:, 6] = part[2][0, 6]


def clipped(demos: Demonstrations) -> None:
    for part in demos.action:
        part[:, 11] = np.minimum(part[:, 11], 0.4)


def commands_beyond_the_joint(demos: Demonstrations) -> None:
    for part in demos.action:
        part[:, 1] = 3 * part[:, 1]


def degrees(demos: Demonstrations) -> None:
    for part in demos.action:
        part *= 180 / np.pi


# Motion --------------------------------------------------------------------------------------------


def delayed(part: np.ndarray, steps: int) -> np.ndarray:
    """The same values, some steps later."""
    return part[np.clip(np.arange(len(part)) - steps, 0, len(part) - 1)]


def action_is_state(demos: Demonstrations) -> None:
    demos.action = [part.copy() for part in demos.state]


def action_too_late(demos: Demonstrations) -> None:
    demos.action = [delayed(part, 5) for part in demos.action]


def state_very_late(demos: Demonstrations) -> None:
    draw = np.random.default_rng(0)
    demos.state = [delayed(part, 18) + draw.normal(0, 1e-3, part.shape).astype(np.float32) for part in demos.state]


def one_state_late(demos: Demonstrations) -> None:
    demos.state[4] = delayed(demos.state[4], 10) + np.random.default_rng(0).normal(0, 1e-3, (1, 14))


def one_action_late(demos: Demonstrations) -> None:
    demos.action[1] = delayed(demos.action[1], 6)


def state_not_arriving(demos: Demonstrations) -> None:
    demos.state[1][40:65] = demos.state[1][40]


def robot_stands_still(demos: Demonstrations) -> None:
    for part in (demos.state, demos.action):
        part[5][:] = part[5][0] + np.random.default_rng(0).normal(0, 1e-3, part[5].shape)


def rest(demos: Demonstrations, episode: int, steps: int, at: int) -> None:
    """Add a rest at the beginning (0) or end (-1) of an episode, with a sensor's noise."""
    draw = np.random.default_rng(0)

    def rested(part: np.ndarray, noise: np.ndarray) -> np.ndarray:
        still = (part[[at] * steps] + noise).clip(-5 if noise.dtype == float else 0, 255).astype(part.dtype)
        return np.concatenate([still, part] if at == 0 else [part, still])

    for parts in (demos.state, demos.action):
        parts[episode] = rested(parts[episode], draw.normal(0, 1e-3, (steps, 14)))
    for of_camera in demos.images.values():
        of_camera[episode] = rested(of_camera[episode], draw.integers(-3, 4, (steps, *of_camera[episode].shape[1:])))
    assert demos.timestamps is not None
    demos.timestamps[episode] = np.arange(len(demos.state[episode])) / 30


# Timing --------------------------------------------------------------------------------------------


def fps_not_told(demos: Demonstrations) -> None:
    demos.fps = None


def other_fps(demos: Demonstrations) -> None:
    demos.fps = 25


def one_other_fps(demos: Demonstrations) -> None:
    assert demos.timestamps is not None
    demos.timestamps[3] *= 1.5


def time_goes_back(demos: Demonstrations) -> None:
    assert demos.timestamps is not None
    demos.timestamps[2][[30, 31]] = demos.timestamps[2][[31, 30]]


def time_is_nan(demos: Demonstrations) -> None:
    assert demos.timestamps is not None
    demos.timestamps[2][30] = np.nan


def steps_lost(demos: Demonstrations) -> None:
    assert demos.timestamps is not None
    demos.timestamps[2][50:] += 0.2


def uneven_steps(demos: Demonstrations) -> None:
    assert demos.timestamps is not None
    draw = np.random.default_rng(0)
    demos.timestamps[2] = np.cumsum(draw.choice([0.01, 1 / 30, 1 / 30, 0.0567], len(demos.timestamps[2])))


# Images --------------------------------------------------------------------------------------------


def put(camera: str, episode: int, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def fault(demos: Demonstrations) -> None:
        demos.images[camera][episode] = change(demos.images[camera][episode].copy())

    return fault


def black(images: np.ndarray, steps: Any = slice(None)) -> np.ndarray:
    images[steps] = np.random.default_rng(0).integers(0, 4, images[steps].shape)
    return images


def green(images: np.ndarray) -> np.ndarray:
    images[30:33] = (0, 135, 0)
    return images


def all_black(demos: Demonstrations) -> None:
    demos.images["front"] = [black(images) for images in demos.images["front"]]


def frozen(images: np.ndarray) -> np.ndarray:
    images[40:60] = images[40]
    return images


def frozen_in_video(images: np.ndarray) -> np.ndarray:
    """What is left of a repeated image once it was encoded: some pixels are another grey level."""
    images[40:60] = images[40]
    images[40:60, ::7, ::7] += np.random.default_rng(0).integers(0, 2, (20, 7, 10, 3), dtype=np.uint8)
    return images


def slow(every: float) -> Fault:
    """Each image stands for so many steps, in the mean."""

    def fault(demos: Demonstrations) -> None:
        for episode, images in enumerate(demos.images["wrist"]):
            taken = (np.arange(len(images)) // every * every).astype(int)
            demos.images["wrist"][episode] = images[taken]

    return fault


def damaged(images: np.ndarray) -> np.ndarray:
    images[50, 16:] = 128
    return images


def same_images(demos: Demonstrations) -> None:
    demos.images["wrist"] = [images.copy() for images in demos.images["front"]]


def exchanged(demos: Demonstrations, episode: int, begin: int = 0, end: int | None = None) -> None:
    front, wrist = (demos.images[camera][episode] for camera in ("front", "wrist"))
    kept = front[begin:end].copy()
    front[begin:end] = wrist[begin:end]
    wrist[begin:end] = kept


def camera_moved(demos: Demonstrations) -> None:
    other = clean(seed=77).images["front"][0]
    steps = len(demos.images["front"][2])
    demos.images["front"][2] = other[np.arange(steps) % len(other)] // 2


# Episodes ------------------------------------------------------------------------------------------


def cut(demos: Demonstrations, episode: int, steps: slice) -> None:
    for parts in (demos.state, demos.action, demos.timestamps, *demos.images.values()):
        assert parts is not None
        parts[episode] = parts[episode][steps]


def copied_actions(demos: Demonstrations) -> None:
    steps = min(len(demos.action[1]), len(demos.action[4]))
    cut(demos, 1, slice(steps))
    cut(demos, 4, slice(steps))
    demos.action[4] = demos.action[1].copy()
    demos.state[4] = demos.state[1] + np.float32(1e-4)


def copied_images(demos: Demonstrations) -> None:
    steps = min(len(demos.action[1]), len(demos.action[4]))
    cut(demos, 1, slice(steps))
    cut(demos, 4, slice(steps))
    demos.images["wrist"][4] = demos.images["wrist"][1].copy()


def wild_episode(demos: Demonstrations) -> None:
    for part in (demos.state, demos.action):
        part[3][:, 11] *= 6


def tasks(*texts: str | None) -> Fault:
    def fault(demos: Demonstrations) -> None:
        demos.tasks = [*texts]

    return fault


def attribute(name: str, value: Any) -> Fault:
    return lambda demos: setattr(demos, name, value)


def as_float64(demos: Demonstrations) -> None:
    demos.state = [part.astype(np.float64) for part in demos.state]


def six_joints(demos: Demonstrations) -> None:
    demos.state, demos.action = ([part[:, :7] for part in parts] for parts in (demos.state, demos.action))


FAULTS: dict[str, tuple[Fault, list[Place]]] = {
    "NaN": (nan_in_action, [("nan", 2, 40)]),
    "infinity": (infinite_state, [("nan", 0, 0)]),
    "reading far off": (reading_far_off, [("far-value", 1, 60)]),
    "spike": (spike, [("jump", 3, 50)]),
    "spike of an unused joint": (spike_of_unused_joint, [("jump", 3, 50), ("constant", None, None)]),
    "teleport": (teleport, [("jump", 4, 70), ("jump", 4, 70)]),
    "wrapped angle": (wrapped_angle, [("wrapped-angle", None, None)] * 2),
    "unused joint": (unused_joint, [("constant", None, None)] * 2),
    "command not recorded": (command_not_recorded, [("frozen-dimension", None, None)]),
    "joint not read": (joint_not_read, [("frozen-dimension", None, None)]),
    "nothing grasped": (nothing_grasped, [("still-gripper", 2, None)]),
    "clipped": (clipped, [("saturated", None, None)]),
    "commands beyond the joint": (commands_beyond_the_joint, [("out-of-reach", None, None)]),
    "degrees": (degrees, [("unit-mismatch", None, None)]),
    "action is state": (action_is_state, [("copied-state", None, None)]),
    "action too late": (action_too_late, [("late-action", None, None)]),
    "state very late": (state_very_late, [("long-lag", None, None)]),
    "one state late": (one_state_late, [("odd-lag", 4, None)]),
    "one action late": (one_action_late, [("odd-lag", 1, None)]),
    "state not arriving": (state_not_arriving, [("frozen-state", 1, 40), ("jump", 1, 65)]),
    "robot does not move": (robot_stands_still, [("still-episode", 5, None)]),
    "rest at first": (lambda demos: rest(demos, 2, 40, 0), [("idle-head", 2, 0)]),
    "rest at last": (lambda demos: rest(demos, 2, 40, -1), [("idle-tail", 2, 112)]),
    "no fps": (fps_not_told, [("no-fps", None, None)]),
    "another fps": (other_fps, [("wrong-fps", None, None)]),
    "one with another fps": (one_other_fps, [("wrong-fps", 3, None)]),
    "time goes back": (time_goes_back, [("unordered-timestamps", 2, 31)]),
    "time is NaN": (time_is_nan, [("unordered-timestamps", 2, 30)]),
    "steps lost": (steps_lost, [("dropped-steps", 2, 50)]),
    "uneven steps": (uneven_steps, [("irregular-timestamps", 2, None)]),
    "black for a while": (put("front", 2, lambda images: black(images, slice(7, 9))), [("blank-image", 2, 7)]),
    "one colour for a while": (put("front", 2, green), [("blank-image", 2, 30)]),
    "black episode": (put("wrist", 3, black), [("blank-image", 3, None)]),
    "black camera": (all_black, [("blank-image", None, None)]),
    "same image for a while": (put("front", 1, frozen), [("frozen-camera", 1, 41)]),
    "same image in a video": (put("front", 1, frozen_in_video), [("frozen-camera", 1, 41)]),
    "same image": (put("front", 1, lambda images: images[[0] * len(images)]), [("frozen-camera", 1, None)]),
    "every second image": (slow(2), [("slow-camera", None, None)]),
    "every third image": (slow(3), [("slow-camera", None, None)]),
    "damaged image": (put("wrist", 0, damaged), [("image-glitch", 0, 50)]),
    "same cameras": (same_images, [("same-camera", None, None)]),
    "exchanged cameras": (lambda demos: exchanged(demos, 3), [("swapped-cameras", 3, None)]),
    "exchanged in the middle": (lambda demos: exchanged(demos, 3, 60), [("swapped-cameras", 3, 60)]),
    "exchanged colours": (put("front", 0, lambda images: images[..., ::-1]), [("changed-image", 0, None)]),
    "upside down": (put("front", 0, lambda images: images[:, ::-1, ::-1]), [("changed-image", 0, None)]),
    "mirrored": (put("front", 0, lambda images: images[:, :, ::-1]), [("changed-image", 0, None)]),
    "other view": (camera_moved, [("odd-view", 2, None)]),
    "copied actions": (copied_actions, [("duplicate-episode", 4, None)]),
    "copied images": (copied_images, [("duplicate-episode", 4, None)]),
    "broken off": (
        lambda demos: cut(demos, 3, slice(25)),
        [("odd-length", 3, None), ("short-episode", None, None), ("still-gripper", 3, None)],
    ),
    "wild episode": (wild_episode, [("dominant-episode", 3, None)] * 2),
    "one task not told": (tasks("a", "a", None, "a", " ", "a"), [("missing-task", 2, None), ("missing-task", 4, None)]),
    "no task told": (tasks(*[None] * 6), [("no-task", None, None)]),
    "two tasks": (tasks(*"aabbaa"), [("several-tasks", None, None)]),
    "colours not told": (attribute("color_order", "rgb"), [("color-order", None, None)]),
    "float64": (as_float64, [("dtype", None, None)]),
    "one arm": (six_joints, [("action-size", None, None)]),
    "damaged columns": (attribute("unreadable", {(3, "columns")}), [("unreadable", 3, None)]),
    "damaged video": (attribute("unreadable", {(3, "front")}), [("unreadable", 3, None)]),
    "fewer images": (put("wrist", 2, lambda images: images[:-3]), [("unreadable", 2, None)]),
}


# Codes that faults in memory cannot have, and the tests that prove them.
PROVEN_ELSEWHERE = {
    "length-mismatch": "test_guide_files.py: test_columns_of_different_lengths",
    "wrong-format": "test_guide_files.py: test_fault_of_all_steps_is_told_once",
    "ignored-field": "test_guide_files.py: test_camera_that_most_steps_lack",
    "missing-episode": "test_dataset_check.py: test_dataset_of_another_format",
    "unread-image": "test_guide_files.py: test_images_that_no_one_reads_are_told",
    "left-out": "../data/test_other_peoples_data.py: test_check_tells_what_is_left_out_and_read_otherwise",
    "read-otherwise": "../data/test_other_peoples_data.py: test_check_tells_what_is_left_out_and_read_otherwise",
    "matched-frames": "../data/test_other_peoples_data.py: test_check_tells_what_is_left_out_and_read_otherwise",
    "depth-holes": "../data/test_depth.py: test_check_finds_holes_and_saturation",
    "depth-saturated": "../data/test_depth.py: test_check_finds_holes_and_saturation",
    "config-mismatch": "test_dataset_check.py: test_settings_that_the_dataset_does_not_fit",
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found_where_it_is(name: str) -> None:
    fault, places = FAULTS[name]
    demos = clean()
    fault(demos)
    findings = demos.findings()
    found = [(finding.code, finding.episode, finding.step) for finding in findings]
    assert sorted(found, key=str) == sorted(places, key=str), [finding.sentence for finding in findings]


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_found_where_nothing_is(seed: int) -> None:
    demos = clean(episodes=seed + 1, seed=seed, fps=(30.0, 50.0, 10.0)[seed % 3], names=seed % 2 == 0)
    assert [finding.sentence for finding in demos.findings()] == []


def test_every_kind_of_finding_is_proven() -> None:
    found = {code for _, places in FAULTS.values() for code, _, _ in places}
    assert found | set(PROVEN_ELSEWHERE) == set(KINDS)


def test_checks_and_kinds_list_the_same_codes() -> None:
    told = [code for codes in checks(images=True).values() for code in codes]
    of_depth = [code for code in KINDS if code.startswith("depth-")]  # looked for where there is a depth camera
    assert sorted([*told, *of_depth, *READING - {"dtype"}]) == sorted(KINDS)
    assert not any("camera" in code or "image" in code for codes in checks(images=False).values() for code in codes)


def test_long_rests_are_warnings() -> None:
    demos = clean()
    rest(demos, 2, 150, 0)
    (finding,) = demos.findings()
    assert (finding.code, finding.severity, finding.count) == ("idle-head", WARNING, pytest.approx(150, abs=3))


def test_slow_cameras_are_warnings_from_half_on() -> None:
    for repeat, severity in ((1.4, INFO), (2, WARNING)):
        demos = clean()
        slow(repeat)(demos)
        assert [(finding.code, finding.severity) for finding in demos.findings()] == [("slow-camera", severity)]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        (
            "spike",
            r"episode_3\.bin, step 50 \(the first of 2\): action\[4\] \(left_e\) goes from -0\.\d+ to 1\.\d+ within "
            r"one step, usually by at most 0\.0\d+",
        ),
        ("one state late", r"episode_4\.bin: the state lags behind the action by 12 steps, usually by 2"),
        ("action too late", r"the actions lag behind the states by 3 steps: they should lead them"),
        (
            "every third image",
            r"camera 'wrist' repeats its last image in 67% of the steps: about (10|9\.\d+) fps, not 30",
        ),
        ("black camera", r"all 6 episodes: camera 'front' is black at all steps"),
        ("steps lost", r"episode_2\.bin, step 50: 23\d ms after the step before; about 6 steps are missing in all"),
    ],
)
def test_sentences_say_what_is_there(name: str, pattern: str) -> None:
    demos = clean()
    FAULTS[name][0](demos)
    (finding,) = demos.findings()
    assert re.fullmatch(pattern, finding.sentence), finding.sentence


def test_frozen_wrist_camera_is_no_fault_where_it_cannot_see_the_arm_that_moves() -> None:
    demos = clean()
    for part, images in zip(demos.state, demos.images["wrist"]):
        part[:40, 7:] = part[0, 7:]  # the arm that the wrist's camera is on
        images[:40] = images[0]
    for part in demos.action:
        part[:40, 7:] = part[0, 7:]
    assert not [finding for finding in demos.findings() if finding.code == "frozen-camera"]


# Any content ---------------------------------------------------------------------------------------


@st.composite
def any_demonstrations(draw: st.DrawFn) -> Demonstrations:
    """Few steps of anything: values that are no numbers, images of one pixel, times that make no sense."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=7))
    sizes = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    values = np.array([0, 0, 1, -1, 0.5, 1e-30, 1e30, np.nan, np.inf], np.float32)
    choices = draw(st.integers(1, len(values)))
    state, action = (
        [random.choice(values[:choices], (length, size)).astype(np.float32) for length in lengths] for size in sizes
    )
    size = draw(st.tuples(st.integers(1, 70), st.integers(1, 90)))
    brightest = draw(st.sampled_from([1, 2, 256]))
    images = {
        name: [random.integers(0, brightest, (length, *size, 3), dtype=np.uint8) for length in lengths]
        for name in draw(st.sampled_from([(), ("a",), ("a", "b")]))
    }
    times = [random.choice([0.0, 0.1, 1.0, np.nan], length) for length in lengths]
    return Demonstrations(
        state,
        action,
        images,
        draw(st.sampled_from([None, times])),
        [draw(st.sampled_from([None, "", "a"])) for _ in lengths],
        fps=draw(st.sampled_from([None, 1e-3, 30.0, 1e5])),
        names=draw(st.sampled_from([None, ["gripper", "gripper", "x"]])),
        unreadable=draw(st.sets(st.tuples(st.integers(0, 6), st.sampled_from(["columns", "a"])))),
    )


@pytest.mark.slow
@settings(max_examples=150)
@given(any_demonstrations())
def test_any_content_is_looked_through(demos: Demonstrations) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of numpy: a number that makes no sense
        findings = demos.findings()
    for finding in findings:
        assert finding.code in KINDS and finding.sentence
        assert finding.episode is None or 0 <= finding.episode < len(demos.state)
        assert finding.step is None or 0 <= finding.step < len(demos.state[finding.episode or 0])
    bad = {
        episode
        for parts in (demos.state, demos.action)
        for episode, part in enumerate(parts)
        if not np.isfinite(part).all() and (episode, "columns") not in demos.unreadable
    }
    assert {finding.episode for finding in findings if finding.code == "nan"} == bad
