"""A task of another package, on a robot of its own: recorded, rolled out and driven in real time by its entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config

from bimact.data.opening import open_dataset
from bimact.errors import UserError
from bimact.evaluation.rollout import RolloutSettings, check_robot, evaluate_rollouts
from bimact.policy.act import ActPolicy
from bimact.policy.loading import LoadedPolicy
from bimact.policy.metadata import Interface
from bimact.run_directory import Run
from bimact.sim.chunked import ChunkedEnv
from bimact.sim.recording import RecordingSettings, record
from bimact.sim.tasks import find_task

PACKAGE = '''
import numpy as np
from gymnasium import spaces

from bimact.sim.base import SimulatedTask, TaskEnv


class PointEnv(TaskEnv):
    """Two points on a line, each moved to where its action says; together in a place of the seed, they have done it."""

    def __init__(self, task, *settings, **others):
        super().__init__(task, spaces.Box(-1, 1, (2,), np.float32), *settings, **others)

    def begin(self, seed):
        self.goal, self.points = np.random.RandomState(seed).uniform(-0.5, 0.5), np.array([-1.0, 1.0])

    def simulate(self, action):
        self.points += np.clip(action - self.points, -0.2, 0.2)
        return 2 * int((np.abs(self.points - self.goal) < 0.01).sum())

    def state(self):
        return np.append(self.points, self.goal)

    def hold(self):
        return self.points

    def image(self, camera, size, quality="fast"):
        return np.full((*size, 3), round(127 + 100 * self.goal), np.uint8)


class Points(SimulatedTask):
    name, cameras, fps, episode_steps = "points", ("front", "back"), 20, 12
    state_names, action_names = ("left", "right", "goal"), ("left", "right")

    def environment(self, cameras=(), image_size=(240, 320), **settings):
        return PointEnv(self, cameras, image_size, **settings)

    def demonstrator(self):
        def actions(seed, noise):
            goal = np.random.RandomState(seed).uniform(-0.5, 0.5)
            if seed == 1:  # a failure
                goal += 1
            return np.full((12, 2), goal)

        return actions


POINTS, NUMBER = Points(), 3
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package; the processes of a recording see it too, as their module path is this one."""
    folder = tmp_path / "packages"
    (folder / "points-1.dist-info").mkdir(parents=True)
    (folder / "points.py").write_text(PACKAGE)
    (folder / "points-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: points\nVersion: 1\n")
    entries = "[bimact.tasks]\npoints = points:POINTS\nnumber = points:NUMBER\nlost = points:LOST\n"
    (folder / "points-1.dist-info" / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(folder)


def policy_for(tmp_path: Path, **changes: Any) -> LoadedPolicy:
    sizes = {"state_dim": 3, "action_dim": 2, "cameras": ["back"], "image_size": [8, 8], "chunk_size": 5, **changes}
    config = tiny_config(**sizes)
    network = ActPolicy(config).eval()
    interface = Interface.of_config(config)
    return LoadedPolicy(network, config, torch.device("cpu"), Run(tmp_path), Path("act-train-last.pth"), interface)


def test_recording(package: None, tmp_path: Path) -> None:
    episodes = record(RecordingSettings("points", 2, ("back",), (8, 8)), tmp_path / "demos", workers=1)
    assert [(episode.seed, episode.failed) for episode in episodes] == [(0, 0), (10_000_001, 1)]
    found = open_dataset(tmp_path / "demos")
    assert (found.fps, found.task, found.cameras) == (20, "points", ("back",))
    assert found.lengths.tolist() == [12, 12]
    assert found.joint_names == ("left", "right") and found.state_names == ("left", "right", "goal")
    assert found.state.shape == (24, 3) and found.actions.shape == (24, 2)
    np.testing.assert_allclose(found.state[11], [found.state[0, 2]] * 3, atol=1e-6)
    with pytest.raises(UserError, match="no camera 'top'; the simulation has front, back"):
        record(RecordingSettings("points", 2, ("top",), (8, 8)), tmp_path / "other")


@pytest.mark.slow
def test_rollouts(package: None, tmp_path: Path) -> None:
    task = find_task("points")
    env = ChunkedEnv(4, 2, "points", cameras=("front",), image_size=(8, 8))
    observation, _ = env.reset(seed=3, options={"videos": {3: tmp_path / "video.mp4"}})
    assert observation["image_front"].shape == (2, 8, 8, 3) and observation["state"].shape == (2, 3)
    actions = task.demonstrator()(3, 0.0).reshape(3, 4, 2)
    results = [env.step(chunk) for chunk in actions]
    assert [result[3] for result in results] == [False, False, True]
    assert results[-1][4] == {"is_success": True, "final_reward": 4}
    assert (tmp_path / "video.mp4").stat().st_size > 0

    settings = RolloutSettings("points", rollouts=2, parallel=1)
    result = evaluate_rollouts(policy_for(tmp_path), settings)
    assert (result["rollouts"], result["steps"]) == (2, 12)
    with pytest.raises(UserError, match="action_dim 14, the simulated robot 2: it is for another robot"):
        check_robot(policy_for(tmp_path, action_dim=14).config, "points")


def test_real_time(package: None, capsys: pytest.CaptureFixture[str]) -> None:
    drive = pytest.importorskip("bimact.deploy.sim_robot").drive

    class Client:
        metadata = {  # noqa: RUF012
            "action_names": ["left", "right"],
            "state_names": ["left", "right", "goal"],
            "control_hz": 20.0,
            "cameras": {"front": {"height": 8, "width": 8}},
            "chunk_size": 12,
            "action_ranges": {"low": np.full(2, -1.0), "high": np.full(2, 1.0)},
        }

        def reset(self) -> None:
            pass

        def infer(self, obs: dict[str, Any], earlier: Any = ()) -> dict[str, Any]:
            return {"actions": np.repeat(obs["state"][None, 2:], 12, axis=0).repeat(2, axis=1)}

    (result,) = drive(Client(), "points")
    assert result.highest_reward == 4 and result.report.cycles == 12
    assert "Success rate: 1 of 1" in capsys.readouterr().out


def test_entry_points_that_are_no_tasks(package: None) -> None:
    with pytest.raises(UserError, match="entry point 'number' in bimact.tasks is not a task but a int"):
        find_task("number")
    with pytest.raises(UserError, match=r"the task 'lost' .* cannot be loaded \(AttributeError"):
        find_task("lost")


def test_a_task_without_demonstrator(package: None) -> None:
    from bimact.sim.base import SimulatedTask

    with pytest.raises(UserError, match="task 'points' has no demonstrator"):
        SimulatedTask.demonstrator(find_task("points"))
