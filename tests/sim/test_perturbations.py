"""Each perturbation changes what it says, by as much as it says, and nothing of the task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bimact.errors import UserError
from bimact.sim.chunked import ChunkedEnv
from bimact.sim.demonstrators import demonstrate
from bimact.sim.environment import AlohaEnv
from bimact.sim.perturbations import (
    PERTURBATIONS,
    Magnitude,
    check_perturbations,
    in_text,
    parse_perturbations,
    suite_of,
)

SEED = 3


def environment(perturb: dict[str, Magnitude] | None = None, task: str = "insertion", **settings: Any) -> AlohaEnv:
    settings = {"cameras": ("top", "left_wrist"), "image_size": (48, 64), **settings}
    return AlohaEnv(task, perturb=perturb, **settings)


@pytest.fixture(scope="module")
def plain() -> AlohaEnv:
    env = environment()
    env.reset(seed=SEED)
    return env


def degrees_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Angles of rotation between rotation matrices (N, 3, 3)."""
    trace = np.einsum("nij,nij->n", one, other)
    return np.rad2deg(np.arccos(((trace - 1) / 2).clip(-1, 1)))


def test_cameras_move_by_the_magnitude(plain: AlohaEnv) -> None:
    env = environment({"camera_shift": 0.02, "field_of_view": 1.05})
    positions = []
    for seed in (SEED, SEED + 1, SEED):
        env.reset(seed=seed)
        moved = np.linalg.norm(env.scene.data.cam_xpos - plain.scene.data.cam_xpos, axis=1)
        np.testing.assert_allclose(moved, 0.02, atol=1e-9)
        turned = degrees_between(env.scene.data.cam_xmat.reshape(-1, 3, 3), plain.scene.data.cam_xmat.reshape(-1, 3, 3))
        np.testing.assert_allclose(turned, 0, atol=1e-4)  # no camera turns back to the table
        positions.append(env.scene.data.cam_xpos.copy())
    assert not np.allclose(positions[0], positions[1])
    np.testing.assert_array_equal(positions[0], positions[2])
    np.testing.assert_allclose(env.scene.model.cam_fovy, 1.05 * plain.scene.model.cam_fovy)
    env.close()


def test_cameras_and_lights_turn_by_the_magnitude(plain: AlohaEnv) -> None:
    env = environment({"camera_turn": 4, "light_direction": 60})
    for seed in (SEED, SEED + 1):  # from the scene's own pose each time
        env.reset(seed=seed)
        ours, usual = (e.scene.data.cam_xmat.reshape(-1, 3, 3) for e in (env, plain))
        np.testing.assert_allclose(degrees_between(ours, usual), 4, atol=1e-4)
        np.testing.assert_allclose(env.scene.data.cam_xpos, plain.scene.data.cam_xpos, atol=1e-9)
        cosines = np.sum(env.scene.model.light_dir * plain.scene.model.light_dir, axis=1)
        np.testing.assert_allclose(np.linalg.norm(env.scene.model.light_dir, axis=1), 1, atol=1e-6)
        assert (cosines >= np.cos(np.deg2rad(60)) - 1e-6).all() and cosines.min() < 0.9
    env.close()


def test_cameras_that_aim_at_a_body_see_the_same_when_fixed(plain: AlohaEnv) -> None:
    env = environment({"camera_shift": 0.0})
    for seed in (SEED, SEED + 1):
        one, other = env.reset(seed=seed)[0], plain.reset(seed=seed)[0]
        np.testing.assert_array_equal(one["state"], other["state"])
        for name in ("image_top", "image_left_wrist"):  # edges may fall on the neighbouring pixel
            assert (one[name] != other[name]).mean() < 0.01
    for action in demonstrate(plain.task, SEED + 1)[:30]:
        env.advance(action)
        plain.advance(action)
    ours, usual = (e.observe()["image_left_wrist"] for e in (env, plain))
    assert (ours != usual).mean() < 0.01
    env.close()
    plain.reset(seed=SEED)


def test_light_surfaces_and_friction(plain: AlohaEnv) -> None:
    usual, model = plain.observe()["image_top"], plain.scene.model
    dim = environment({"light": 0.5})
    image = [dim.reset(seed=SEED)[0]["image_top"] for _ in range(2)][1]  # not halved again by a second reset
    assert image.mean() == pytest.approx(usual.mean() / 2, rel=0.05)
    colored = environment({"table_color": 1.0, "object_color": 0.5, "friction": 2})
    colored.reset(seed=SEED)
    changed = np.abs(colored.scene.model.geom_rgba - model.geom_rgba).max(axis=1) > 1e-3
    names = {model.geom(number).name for number in np.flatnonzero(changed)}
    assert names == {"table", "red_peg", "pin", *(f"socket-{wall}" for wall in range(1, 5))}
    np.testing.assert_allclose(colored.scene.model.geom_friction, 2 * model.geom_friction)
    textured = environment({"table_texture": 1.0})
    pattern = textured.reset(seed=SEED)[0]["image_top"]
    table = np.abs(np.diff(pattern[12:34, 12:52].astype(float), axis=1)).mean()
    assert table > 2 * np.abs(np.diff(usual[12:34, 12:52].astype(float), axis=1)).mean()
    assert textured.scene.model.geom("table-cover").contype == 0
    for env in (dim, colored, textured):
        env.close()


def test_objects(plain: AlohaEnv) -> None:
    large = environment({"object_size": 1.1})
    for name in ("red_peg", "socket-1", "pin"):
        np.testing.assert_allclose(large.scene.model.geom(name).size, 1.1 * plain.scene.model.geom(name).size)
        np.testing.assert_allclose(large.scene.model.geom(name).pos, 1.1 * plain.scene.model.geom(name).pos, atol=1e-9)
    np.testing.assert_allclose(large.scene.model.geom("table").size, plain.scene.model.geom("table").size)
    np.testing.assert_allclose(large.scene.model.body_mass, plain.scene.model.body_mass)
    outside = environment({"outside": 0.04})
    sides = set()
    for seed in range(20):
        outside.reset(seed=seed)
        for position, (low, high) in zip(outside.scene.data.qpos[16:].reshape(2, 7), outside.task.start_boxes):
            distances = [max(low[axis] - position[axis], position[axis] - high[axis], 0) for axis in (0, 1, 2)]
            assert sorted(distances) == pytest.approx([0, 0, 0.04])
            axis = int(np.argmax(distances))
            sides.add((axis, position[axis] > high[axis]))
    assert sides == {(0, False), (0, True), (1, False), (1, True)}


def test_images(plain: AlohaEnv) -> None:
    usual = plain.observe()
    noisy = environment({"image_noise": 15, "black_camera": "left_wrist"})
    one, two, three = (noisy.reset(seed=seed)[0] for seed in (SEED, SEED, SEED + 1))
    assert not one["image_left_wrist"].any()
    np.testing.assert_array_equal(one["image_top"], two["image_top"])
    assert not np.array_equal(one["image_top"], three["image_top"])
    bright = (usual["image_top"] > 50) & (usual["image_top"] < 200)
    assert np.std((one["image_top"].astype(float) - usual["image_top"])[bright]) == pytest.approx(15, rel=0.1)
    for perturb in ({"blur": 2.0}, {"compression": 10.0}):
        env = environment(perturb)
        image = env.reset(seed=SEED)[0]["image_top"]
        assert image.shape == usual["image_top"].shape and image.dtype == np.uint8
        assert 0.5 < np.abs(image.astype(float) - usual["image_top"]).mean() < 30
        env.close()
    noisy.close()


def test_a_frozen_camera_shows_its_first_image() -> None:
    env = environment({"frozen_camera": "top", "image_noise": 5})
    first, _ = env.reset(seed=SEED)
    for action in demonstrate(env.task, SEED)[100:130]:
        env.advance(action)
    later = env.observe()
    np.testing.assert_array_equal(later["image_top"], first["image_top"])
    assert not np.array_equal(later["image_left_wrist"], first["image_left_wrist"])
    env.close()


@pytest.mark.parametrize("perturb", [{"delay": 3}, {"dropped": 0.5}, {"delay": 2, "dropped": 0.5}], ids=in_text)
def test_observations_are_those_of_an_earlier_step(perturb: dict[str, Magnitude]) -> None:
    settings: dict[str, Any] = {"cameras": ("top",), "image_size": (24, 32)}
    late, plain = environment(perturb, **settings), environment(**settings)
    seen, usual = [late.reset(seed=SEED)[0]], [plain.reset(seed=SEED)[0]]
    rewards = []
    for action in demonstrate(plain.task, SEED)[:25]:
        seen.append(late.step(action)[0])
        usual.append(plain.step(action)[0])
        rewards.append((late.scene.reward(), plain.scene.reward()))
    assert all(one == other for one, other in rewards)  # what happens is the present
    np.testing.assert_array_equal(late.scene.data.qpos, plain.scene.data.qpos)
    ages = []
    for step, observation in enumerate(seen):
        of = max(s for s in range(step + 1) if np.array_equal(usual[s]["state"], observation["state"]))
        np.testing.assert_array_equal(observation["image_top"], usual[of]["image_top"])
        ages.append(step - of)
    if "dropped" not in perturb:
        assert ages == [min(3, step) for step in range(26)]
    else:
        assert min(ages[4:]) == perturb.get("delay", 0) and max(ages) > min(ages[4:])
    late.close()
    plain.close()


def test_late_observations_in_chunks_are_the_single_ones() -> None:
    settings: dict[str, Any] = {"cameras": ("top",), "image_size": (24, 32), "perturb": {"delay": 3, "image_noise": 5}}
    chunked, single = ChunkedEnv(5, 2, task="transfer_cube", **settings), AlohaEnv("transfer_cube", **settings)
    actions = demonstrate(single.task, SEED)[:10]
    chunked.reset(seed=SEED)
    single.reset(seed=SEED)
    frames = [single.step(action)[0] for action in actions]
    for start in (0, 5):
        observation = chunked.step(actions[start : start + 5])[0]
        for name in observation:
            np.testing.assert_array_equal(observation[name], [frame[name] for frame in frames[start + 3 : start + 5]])
    chunked.close()
    single.close()


def test_actions() -> None:
    slow = environment({"control_rate": 25}, cameras=())
    actions = demonstrate(slow.task, SEED)[100:140]
    slow.reset(seed=SEED)
    targets = []
    for action in actions:
        slow.advance(action)
        targets.append(slow.scene.data.ctrl[:6].copy())
    np.testing.assert_allclose(targets, np.repeat(actions[::2, :6], 2, axis=0))
    noisy = environment({"action_noise": 0.02}, cameras=())
    differences = []
    for _ in range(2):
        noisy.reset(seed=SEED)
        for action in actions:
            noisy.advance(action)
            differences.append(noisy.scene.data.ctrl[:6] - action[:6])
    np.testing.assert_array_equal(differences[:40], differences[40:])
    assert np.std(differences) == pytest.approx(0.02, rel=0.15)


def test_together_they_are_as_alone() -> None:
    """A perturbation draws its own random numbers, whatever else is drawn."""
    alone, together = environment({"camera_shift": 0.02}), environment({"outside": 0.02, "camera_shift": 0.02})
    alone.reset(seed=SEED)
    together.reset(seed=SEED)
    np.testing.assert_array_equal(alone.scene.model.cam_pos, together.scene.model.cam_pos)


def test_randomized_magnitudes_are_drawn_by_the_scene(plain: AlohaEnv) -> None:
    env = environment({"camera_shift": 0.04, "field_of_view": 1.25}, randomized=True)
    shifts, factors = [], []
    for seed in (*range(30), 0):
        env.reset(seed=seed)
        [shift] = np.unique(np.linalg.norm(env.scene.data.cam_xpos - plain.scene.data.cam_xpos, axis=1).round(9))
        shifts.append(shift)
        factors.append((env.scene.model.cam_fovy / plain.scene.model.cam_fovy)[0])
    assert shifts[0] == shifts[-1] and len(set(shifts)) == 30
    assert 0 <= min(shifts) < 0.01 and 0.03 < max(shifts) <= 0.04
    assert 0.8 <= min(factors) < 0.9 and 1.1 < max(factors) <= 1.25
    env.close()


def test_looks_are_drawn_again_and_the_physics_stays(plain: AlohaEnv) -> None:
    changes: dict[str, Magnitude] = {"camera_shift": 0.04, "light": 2.0, "table_texture": 1.0, "image_noise": 5.0}
    once = environment(changes, randomized=True)
    often = environment(changes, randomized=True, randomize_steps=3)
    seen: dict[str, list[bytes]] = {"pose": [], "light": [], "pattern": []}
    for env in (plain, once, often):
        env.reset(seed=5)
    for step in range(9):
        model = often.scene.model
        seen["pose"].append(model.cam_pos.tobytes())
        seen["light"].append(model.light_diffuse.tobytes())
        seen["pattern"].append(model.geom_matid.tobytes())
        if step < 3:
            np.testing.assert_array_equal(often.observe()["image_top"], once.observe()["image_top"])
        action = plain.hold() + 0.05
        for env in (plain, once, often):
            env.advance(action)
            env.observe()
        np.testing.assert_array_equal(often.scene.data.qpos, plain.scene.data.qpos)
    for name, draws in (("pose", 3), ("light", 3), ("pattern", 2)):  # two draws have the same pattern, or none
        assert [len(set(seen[name][at : at + 3])) for at in (0, 3, 6)] == [1, 1, 1], name
        assert len(set(seen[name])) == draws, name
    model, tables = often.scene.model, []
    patterns = {model.material(f"table-pattern-{number}").id for number in range(4)}
    for seed in range(12):
        often.reset(seed=seed)
        tables.append(bool(patterns & set(model.geom_matid.tolist())))
    assert 2 < sum(tables) < 10  # half of them have a pattern
    once.close()
    often.close()


@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_suite_has_all_of_them_and_a_control(task: str) -> None:
    conditions = suite_of(("top",))
    assert conditions[0] == {}
    assert {name for condition in conditions for name in condition} == set(PERTURBATIONS)
    assert {"black_camera": "all"} in conditions and len(conditions) < 50
    assert {"black_camera": "left_wrist"} in suite_of(("top", "left_wrist"))
    for condition in conditions:
        check_perturbations(condition, ("top",))
    everything: dict[str, Magnitude] = {}
    for condition in conditions:
        everything.update(condition)
    env = environment({**everything, "black_camera": "top", "frozen_camera": "left_wrist"}, task)
    env.reset(seed=SEED)
    env.step(env.action_space.sample())
    env.close()


def test_text() -> None:
    text = "camera_shift=0.02,delay=2,black_camera=top"
    magnitudes = parse_perturbations(text)
    assert magnitudes == {"camera_shift": 0.02, "delay": 2.0, "black_camera": "top"}
    assert in_text(magnitudes) == text and parse_perturbations(" light = 0.7 ") == {"light": 0.7}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("camera_shft=0.1", "there is no perturbation 'camera_shft'; there are camera_shift, "),
        ("camera_shift", "has 'camera_shift', it has to be NAME=MAGNITUDE"),
        ("light=dark", "light is 'dark', it has to be a number"),
        ("light=9", "light is 9.0, it has to be from 0 to 5"),
        ("delay=1.5", "delay is 1.5, it has to be a whole number"),
        ("delay=1,delay=2", "has delay twice"),
        ("blur=nan", "blur is nan, it has to be from 0 to 20"),
    ],
)
def test_faulty_text(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_perturbations(text)


def test_cameras_that_are_not_the_policys() -> None:
    with pytest.raises(UserError, match=r"black_camera is 'front', it has to be a camera of the policy \(top\) or all"):
        check_perturbations({"black_camera": "front"}, ("top",))


@pytest.mark.parametrize("settings", [{"randomize_steps": 0, "randomized": True}, {"randomize_steps": 2}])
def test_looks_that_cannot_be_drawn_again(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="it has to be 1 or more, and is of randomized camera_shift"):
        environment({"light": 2.0}, **settings)
    with pytest.raises(UserError, match="randomize_steps is 2"):
        environment({"delay": 2}, randomized=True, randomize_steps=2)
