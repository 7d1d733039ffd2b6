"""The Gymnasium environments: their contract, seeds, cameras, and what is rendered."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from bimact.sim import GYM_IDS
from bimact.sim.chunked import ChunkedEnv
from bimact.sim.demonstrators import demonstrate
from bimact.sim.environment import AlohaEnv
from bimact.sim.rendering import Renderer
from bimact.sim.tasks import CAMERAS

SMALL: dict[str, Any] = {"image_size": (24, 32)}


@pytest.mark.parametrize("gym_id", GYM_IDS.values())
@pytest.mark.filterwarnings("ignore:.*A Box observation space.*", "ignore:.*we recommend using a symmetric.*")
def test_gymnasium_contract(gym_id: str) -> None:
    env = gymnasium.make(gym_id, **SMALL, cameras=("top", "left_wrist"), render_mode="rgb_array", render_size=(24, 32))
    check_env(env.unwrapped)
    env.close()


def test_cameras_and_sizes() -> None:
    env = AlohaEnv("transfer_cube", CAMERAS, **SMALL)
    observation, _ = env.reset(seed=0)
    assert set(observation) == {f"image_{camera}" for camera in CAMERAS} | {"state"}
    images = [observation[f"image_{camera}"] for camera in CAMERAS]
    assert all(image.shape == (24, 32, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == len(CAMERAS)
    env.close()
    env.close()
    assert env.reset(seed=0)[0]["image_top"].shape == (24, 32, 3)  # usable again
    env.close()


def test_only_what_is_asked_for_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(Renderer, "render", lambda self, data, camera: drawn.append(camera) or np.zeros((24, 32, 3)))
    env = AlohaEnv("transfer_cube", ("angle",), **SMALL)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.advance(env.action_space.sample())
    assert drawn == ["angle", "angle"]
    env = AlohaEnv("transfer_cube", ())
    env.reset(seed=0)
    assert len(drawn) == 2


def test_seeds_and_no_shared_state() -> None:
    one, two = AlohaEnv("transfer_cube", **SMALL), AlohaEnv("transfer_cube", **SMALL)
    first, _ = one.reset(seed=5)
    two.reset(seed=6)
    again, _ = two.reset(seed=5)
    np.testing.assert_array_equal(first["image_top"], again["image_top"])
    following = [one.reset()[0]["image_top"], two.reset()[0]["image_top"]]
    np.testing.assert_array_equal(*following)  # unseeded resets go on from the seed
    assert not np.array_equal(following[0], first["image_top"])
    one.close()
    two.close()


def test_episode_and_success() -> None:
    env = AlohaEnv("transfer_cube", (), episode_steps=400)
    env.reset(seed=1)
    rewards, successes, ends = [], [], []
    for action in demonstrate(env.task, 1):
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        successes.append(info["is_success"])
        ends.append(terminated or truncated)
    assert max(rewards) == 4
    first = rewards.index(4)
    assert not any(successes[:first]) and all(successes[first:])
    assert ends == [False] * 399 + [True]
    assert env.reset(seed=1)[1] == {"is_success": False}


def test_quality_changes_looks_not_physics() -> None:
    fast, high = (AlohaEnv("insertion", image_size=(120, 160), quality=q) for q in ("fast", "high"))
    one, two = fast.reset(seed=0)[0], high.reset(seed=0)[0]
    assert not np.array_equal(one["image_top"], two["image_top"])
    np.testing.assert_array_equal(one["state"], two["state"])
    fast.close()
    high.close()
    with pytest.raises(ValueError, match="fast, high"):
        AlohaEnv("insertion", quality="best").reset(seed=0)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="no camera 'front'"):
        AlohaEnv("insertion", ("front",))
    with pytest.raises(ValueError, match="render_mode"):
        AlohaEnv("insertion", render_mode="human")


@pytest.mark.parametrize(("execute_steps", "history"), [(1, 1), (1, 3), (5, 1), (5, 3), (2, 3)])
def test_chunked_steps_are_the_single_ones(execute_steps: int, history: int) -> None:
    chunked = ChunkedEnv(execute_steps, history, task="transfer_cube", cameras=("top",), **SMALL, episode_steps=11)
    single = AlohaEnv("transfer_cube", **SMALL, episode_steps=11)
    actions = demonstrate(single.task, 2)[60:72].astype(np.float32)
    frames = [single.reset(seed=2)[0]]
    observation, _ = chunked.reset(seed=2)
    np.testing.assert_array_equal(observation["state"], [frames[0]["state"]] * history)
    done, truncated = 0, False
    while not truncated:
        observation, reward, _, truncated, info = chunked.step(actions[done : done + execute_steps])
        rewards = []
        for action in actions[done : done + execute_steps]:
            if not single.truncated:
                frame, one_reward, *_ = single.step(action)
                frames.append(frame)
                rewards.append(one_reward)
        done += execute_steps
        assert reward == max(rewards) and info["final_reward"] == rewards[-1]
        assert truncated == single.truncated
        if not truncated:
            expected = ([frames[0]] * history + frames)[-history:]
            for name in ("state", "image_top"):
                np.testing.assert_array_equal(observation[name], [frame[name] for frame in expected])
    chunked.close()
    single.close()


def test_mujoco_imported_too_early_is_explained() -> None:
    """Its context would look for a screen and abort the process."""
    code = "import mujoco; from bimact.cli import main; main(['record', '--task', 'insertion', '--output_dir', 'd'])"
    hidden = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "import bimact.sim first" in result.stderr


@pytest.mark.slow
def test_pytorch_can_be_loaded_after_rendering() -> None:
    """Triton, which PyTorch for CUDA brings, was a segmentation fault after Mesa's LLVM."""
    code = (
        "from bimact.sim.environment import AlohaEnv; AlohaEnv(image_size=(24, 32)).reset(seed=0)\n"
        "import torch._dynamo; import torchvision; print('loaded')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "loaded\n"), result.stderr


_WITHOUT_EGL = """
import ctypes.util
real = ctypes.util.find_library
ctypes.util.find_library = lambda name: None if name in ("EGL", "OpenGL", "GL", "OSMesa") else real(name)
load = ctypes.CDLL
def refuse(name, *arguments, **keywords):
    if name and any(part in str(name) for part in ("EGL", "OpenGL", "GL.so", "OSMesa")):
        raise OSError(f"{name}: cannot open shared object file")
    return load(name, *arguments, **keywords)
ctypes.CDLL = ctypes.cdll._dlltype = refuse
"""


@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_missing_opengl_is_one_sentence(backend: str, tmp_path: Any) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT_EGL)  # which worker processes import as well
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "bimact",
            "record",
            "--task",
            "transfer_cube",
            "--output_dir",
            str(tmp_path / "d"),
        ],
        env={**os.environ, "MUJOCO_GL": backend, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr and "eglQueryString" not in result.stderr
    assert "apt-get install -y --no-install-recommends libegl1 libgl1-mesa-dri libopengl0" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
