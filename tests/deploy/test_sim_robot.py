"""The simulated robot in real time, driven by a policy that replays a demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bimact_client import Execution, Safety

import bimact
from bimact.cli import main
from bimact.errors import UserError
from bimact.sim.demonstrators import demonstrate
from bimact.sim.tasks import JOINTS, find_task

pytestmark = pytest.mark.gl
SEED = 1000


class Replay:
    """A policy in this process that knows the demonstration of a scene, and counts the observations."""

    def __init__(self, **changes: Any) -> None:
        self.actions = demonstrate(find_task("transfer_cube"), SEED).astype(np.float32)
        self.metadata = {
            "run": "replay",
            "action_names": list(JOINTS),
            "state_names": None,
            "control_hz": 50.0,
            "cameras": {"top": {"height": 24, "width": 32, "color_order": "rgb"}},
            "chunk_size": 100,
            "action_ranges": {"low": self.actions.min(axis=0), "high": self.actions.max(axis=0)},
            **changes,
        }
        self.observations: list[dict[str, Any]] = []

    def reset(self) -> None:
        self.step = 0

    def infer(self, obs: dict[str, Any], earlier: Any = ()) -> dict[str, Any]:
        self.observations.append(obs)
        self.earlier = earlier
        chunk = self.actions[self.step : self.step + 50]
        self.step += 50
        return {"actions": chunk}


@pytest.mark.slow
def test_a_demonstration_succeeds_in_real_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bimact.deploy.sim_robot import drive

    for attempt in range(3):  # a busy machine can be too slow for real time
        policy, folder = Replay(), tmp_path / f"record{attempt}"
        (result,) = drive(policy, "transfer_cube", seed=SEED, record=folder)
        out = capsys.readouterr().out
        if result.highest_reward == 4 and result.report.hz > 40:
            break
    assert result.highest_reward == 4, out
    assert "Policy replay  drives the simulated robot at 50 Hz, chunk" in out
    assert f"Seed {SEED}: success" in out and "Success rate: 1 of 1 = 100.0%" in out
    report = result.report
    assert report.chunks == 8 and report.hz > 40
    assert len(policy.observations) == 8
    assert policy.observations[0]["image_top"].shape == (24, 32, 3)
    dataset = bimact.open_dataset(folder)
    assert dataset.num_steps == 400 + report.held_cycles
    assert dataset.joint_names == JOINTS


class Watching(Replay):
    """Knows where it is in the demonstration by the number of steps that the robot has made."""

    def infer(self, obs: dict[str, Any], earlier: Any = ()) -> dict[str, Any]:
        self.observations.append(obs)
        step = int(np.abs(self.actions - obs["state"]).sum(axis=1).argmin())
        return {"actions": np.concatenate([self.actions[step:], np.tile(self.actions[-1], (400, 1))])[:100]}


def test_a_simulated_clock_gives_the_same_each_time_and_waits_for_nobody() -> None:
    from bimact.deploy.sim_robot import drive

    found = []
    for _ in range(2):
        policy, said = Replay(), []
        (result,) = drive(policy, "transfer_cube", seed=SEED, real_time=False, say=said.append)
        assert result.highest_reward == 4, said
        assert result.report.hz == pytest.approx(50) and result.report.late_cycles == result.report.held_cycles == 0
        assert len(policy.observations) == 8 and "on a simulated clock" in said[0]
        found.append([obs["state"] for obs in policy.observations])
    np.testing.assert_array_equal(*found)
    images = [obs["image_top"] for obs in policy.observations]
    assert images[0].shape == (24, 32, 3) and (images[0] != images[4]).any()


def test_delays_on_the_simulated_clock_are_exact() -> None:
    from bimact.deploy.sim_robot import drive

    policy, said = Replay(), []
    (result,) = drive(policy, "transfer_cube", seed=SEED, delay=0.08, real_time=False, say=said.append)
    assert result.report.latency_ms == pytest.approx([80] * 8)
    assert result.report.held_cycles == 7 * 4  # the robot waits at each chunk's end
    policy = Watching()
    execution = Execution("async", execute_steps=25, blend="latest")
    (result,) = drive(
        policy, "transfer_cube", seed=SEED, delay=0.08, real_time=False, execution=execution, say=said.append
    )
    assert result.report.held_cycles == 0 and result.report.dropped == 4 * (result.report.chunks - 1)
    with pytest.raises(UserError, match="the policy sent NaN or Inf"):
        policy = Replay()
        policy.actions[60:] = np.nan
        drive(policy, "transfer_cube", real_time=False, say=said.append)


def test_a_policy_of_another_robot() -> None:
    from bimact.deploy.sim_robot import drive

    with pytest.raises(UserError, match="takes camera 'cam_high', which the simulation does not have"):
        drive(Replay(cameras={"cam_high": {"height": 24, "width": 32}}), "transfer_cube")
    with pytest.raises(UserError, match="does not say which size the images of camera 'top' have"):
        drive(Replay(cameras={"top": None}), "transfer_cube")
    with pytest.raises(UserError, match="no task named 'tidy'"):
        drive(Replay(cameras={}), "tidy")
    with pytest.raises(UserError, match="action_names of the policy lacks right_gripper"):
        drive(Replay(action_names=list(JOINTS[:-1])), "transfer_cube")


def test_a_policy_that_fails_stops_the_simulated_robot(capsys: pytest.CaptureFixture[str]) -> None:
    from bimact.deploy.sim_robot import drive

    policy = Replay(temporal_context=2)
    policy.actions[60:] = np.nan
    with pytest.raises(UserError, match="the policy sent NaN or Inf for left_waist"):
        drive(
            policy,
            "transfer_cube",
            execution=Execution("async", execute_steps=5),
            safety=Safety(stop_after=1),
            delay=0.02,
        )
    assert len(policy.earlier) == 1
    assert "Stopped:  the policy sent NaN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--server", "8000"], "--server is '8000', it has to be HOST:PORT such as 192.168.0.2:8000"),
        (["--server", "127.0.0.1:1", "--timeout", "0.2"], "no policy server at ws://127.0.0.1:1 within 0.2 s"),
        (["--rollouts", "0"], "--rollouts is 0, it has to be at least 1"),
        (["--hz", "0"], "--hz is 0, it has to be above 0"),
        (["--run", "runs/none/here"], "runs/none/here does not exist"),
    ],
)
def test_wrong_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sim-robot", "--task", "transfer_cube", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
