"""The control loop on a fake clock: rate, execution, safety, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import FakeClock, FakePolicy, FakeRobot, loop_of

from bimact_client import Execution, Safety, ServerError, ServerTimeout, ServerUnreachable, Stopped


def steps_of(robot: FakeRobot) -> np.ndarray:
    return np.array(robot.sent)


# The clock -------------------------------------------------------------------------------------------


def test_deadlines_do_not_move_with_the_work() -> None:
    loop, robot, _ = loop_of(FakePolicy(delay=0.005))
    report = loop.run(100)
    work = np.where(np.arange(100) % 10 == 0, 0.006, 0.001)
    np.testing.assert_allclose(robot.times - work, robot.times[0] - 0.006 + 0.02 * np.arange(100))
    assert report.hz == pytest.approx(50) and report.late_cycles == report.held_cycles == 0
    assert report.chunks == 10 and report.latency(50) == pytest.approx(5)


def test_a_late_cycle_does_not_move_the_next_ones() -> None:
    loop, robot, clock = loop_of(FakePolicy(delay=0.0))
    usual = robot.get_observation

    def slow_once() -> dict[str, Any]:
        if len(robot.times) == 20:
            clock.sleep(0.025)
        return usual()

    robot.get_observation = slow_once  # type: ignore[method-assign]
    report = loop.run(50)
    assert report.late_cycles == 1
    assert robot.times[-1] - robot.times[0] == pytest.approx(49 * 0.02, abs=1e-6)


def test_cycles_that_were_missed_are_not_made_up_for() -> None:
    loop, robot, clock = loop_of(FakePolicy(delay=0.0))
    usual = robot.get_observation

    def hangs_once() -> dict[str, Any]:
        if len(robot.times) == 20:
            clock.sleep(0.2)
        return usual()

    robot.get_observation = hangs_once  # type: ignore[method-assign]
    report = loop.run(50)
    assert min(np.diff(robot.times)) > 0.008, "no burst"
    assert report.hz == pytest.approx(50 * 50 / 59, rel=0.02)


def test_the_rate_of_training_is_the_default_and_another_one_is_said() -> None:
    said: list[str] = []
    loop, _, _ = loop_of(FakePolicy(), hz=25, say=said.append)
    assert loop.run(10).hz == pytest.approx(25)
    assert said == ["the loop runs at 25 Hz, the policy was trained at 50 Hz"]
    with pytest.raises(Stopped, match="does not say its control frequency: give hz"):
        loop_of(FakePolicy(control_hz=None))


# Execution -------------------------------------------------------------------------------------------


def numbered(number: int, obs: Any) -> np.ndarray:
    """Chunks whose values tell the request and the step in it: request + step / 100, times 0.01."""
    return 0.01 * (number + np.arange(10)[:, None] / 100) + np.zeros((1, 3))


def test_chunks_are_executed_for_the_servers_number_of_steps() -> None:
    loop, robot, _ = loop_of(FakePolicy(numbered, execution={"execute_steps": 4}))
    loop.run(12)
    expected = [0.01 * (number + step / 100) for number in range(3) for step in range(4)]
    np.testing.assert_allclose(steps_of(robot)[:, 0], expected, atol=1e-7)


def test_a_chunk_that_takes_longer_than_a_cycle_is_awaited_without_losing_a_step() -> None:
    policy = FakePolicy(numbered, delay=0.05)
    loop, robot, _ = loop_of(policy, execution=Execution(execute_steps=4))
    report = loop.run(12)
    assert report.late_cycles == 0
    assert report.held_cycles == 2 * 2  # two cycles at each of the borders after the first chunk
    fresh = steps_of(robot)[:, 0]
    expected = [0.01 * (number + step / 100) for number in range(3) for step in range(4)]
    np.testing.assert_allclose(np.unique(fresh), expected, atol=1e-7)
    assert report.hz == pytest.approx(50)


@pytest.mark.parametrize("blend", ["latest", "linear", "ensemble"])
def test_async_drops_the_steps_that_the_delay_has_used_up(blend: str) -> None:
    policy = FakePolicy(numbered, delay=0.05)
    loop, robot, _ = loop_of(policy, execution=Execution("async", execute_steps=5, blend=blend))
    report = loop.run(30)
    assert report.held_cycles == 0 and report.late_cycles == 0
    # A request at step 5 is answered 2.5 cycles later: the chunk is used from its third step on.
    assert report.dropped == 3 * (report.chunks - 1)
    sent = 100 * steps_of(robot)[:, 0]
    np.testing.assert_allclose(sent[:8], np.arange(8) / 100, atol=1e-5)  # the first chunk alone
    old, new = np.arange(8, 10) / 100, 1 + np.arange(3, 5) / 100
    weights = {"latest": [1, 1], "linear": [1 / 3, 2 / 3], "ensemble": [1 / (1 + np.exp(0.01))] * 2}[blend]
    if blend == "ensemble":
        weights = [np.exp(-0.01) / (1 + np.exp(-0.01))] * 2
    np.testing.assert_allclose(sent[8:10], (1 - np.array(weights)) * old + np.array(weights) * new, atol=1e-5)


def test_a_policy_with_max_delay_is_given_the_actions_until_its_chunk_comes() -> None:
    policy = FakePolicy(numbered, delay=0.05, max_delay=2)
    loop, robot, _ = loop_of(policy, execution=Execution("async", execute_steps=5, blend="latest"))
    loop.run(30)
    assert "given_actions" not in policy.seen[0]
    # 2.5 cycles of delay are 3 steps, of which the policy takes 2.
    np.testing.assert_allclose(100 * policy.seen[1]["given_actions"][:, 0], [0.05, 0.06], atol=1e-5)
    policy = FakePolicy(numbered, delay=0.05, max_delay=8)
    loop, robot, _ = loop_of(policy, execution=Execution("async", execute_steps=5, blend="latest"))
    loop.run(30)
    given = [seen["given_actions"] for seen in policy.seen[1:]]
    assert [len(actions) for actions in given] == [3] * len(given)
    sent = np.array(robot.sent)
    np.testing.assert_allclose(given[0], sent[5:8], atol=1e-6)
    policy = FakePolicy(numbered, delay=0.05)
    loop, robot, _ = loop_of(policy, execution="async")
    loop.run(30)
    assert all("given_actions" not in seen for seen in policy.seen)


def test_images_that_nobody_needs_are_not_copied() -> None:
    robot = FakeRobot(FakeClock())
    looked: list[int] = []

    class Lazy:
        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            looked.append(1)
            return np.zeros((4, 6, 3), np.uint8)

    usual = robot.get_observation
    robot.get_observation = lambda: {  # type: ignore[method-assign]
        **usual(),
        "image_top": Lazy(),
        "time_top": len(robot.sent),
    }
    policy = FakePolicy(execution={"execute_steps": 10})
    loop, robot, _ = loop_of(policy, robot=robot)
    loop.run(40)
    assert len(looked) == len(policy.seen) == 4
    assert all(seen["image_top"].shape == (4, 6, 3) for seen in policy.seen)


def test_async_does_not_starve_when_observations_are_the_same() -> None:
    policy = FakePolicy(lambda number, obs: np.zeros((10, 3)), delay=0.03)
    loop, _, _ = loop_of(policy, execution="async")
    report = loop.run(200)
    assert report.held_cycles == 0 and report.chunks >= 39


def test_async_holds_when_the_delay_is_longer_than_the_chunk_and_loses_no_step() -> None:
    policy = FakePolicy(numbered, delay=0.3)
    loop, robot, _ = loop_of(policy, execution=Execution("async", execute_steps=5, blend="latest"))
    report = loop.run(20)
    assert report.held_cycles > 0
    sent = 100 * steps_of(robot)[:, 0]
    np.testing.assert_allclose(np.unique(sent.round(5))[:10], np.arange(10) / 100, atol=1e-5)
    # Those used up by the delay are 5 of the second chunk: held cycles do not count.
    assert np.unique(sent.round(5))[10] == pytest.approx(1.05)


def test_temporal_ensembling_is_that_of_the_simulation() -> None:
    torch = pytest.importorskip("torch")
    from bimact.policy.ensembling import TemporalEnsemble

    draw = np.random.default_rng(0)
    chunks = 0.05 * draw.normal(size=(40, 10, 3)).astype(np.float32)
    for window in (None, 3):
        policy = FakePolicy(lambda number, obs: chunks[number])
        execution = Execution("temporal_ensemble", ensemble_coefficient=0.1, ensemble_window=window)
        safety = Safety(low=-np.inf, high=np.inf, max_step=np.inf, ramp_step=np.inf)
        loop, robot, _ = loop_of(policy, execution=execution, safety=safety)
        loop.run(40)
        ensemble = TemporalEnsemble(10, 0.1, window)
        expected = [ensemble.update(torch.from_numpy(chunk[None]))[0].numpy() for chunk in chunks]
        np.testing.assert_allclose(steps_of(robot), expected, atol=1e-6)


def test_temporal_ensembling_goes_on_with_older_chunks_when_one_is_late() -> None:
    policy = FakePolicy(delay=0.05)
    loop, _, _ = loop_of(policy, execution="temporal_ensemble")
    report = loop.run(30)
    assert report.held_cycles == report.late_cycles == 0
    assert 10 <= report.chunks < 30


@pytest.mark.parametrize(
    ("asked", "run", "expected"),
    [
        (None, {}, Execution("chunk")),
        (None, {"mode": "chunk", "execute_steps": 4}, Execution("chunk", 4)),
        ("async", {"mode": "chunk", "execute_steps": 4}, Execution("async", 4)),
        ("async", {"mode": "chunk", "execute_steps": 10}, Execution("async")),
        (
            None,
            {"mode": "temporal_ensemble", "execute_steps": 1, "ensemble_coefficient": 0.0, "ensemble_window": 3},
            Execution("temporal_ensemble", ensemble_coefficient=0.0, ensemble_window=3),
        ),
        ("chunk", {"mode": "temporal_ensemble", "execute_steps": 1}, Execution("chunk")),
        (Execution("async", 2), {"mode": "chunk", "execute_steps": 4}, Execution("async", 2)),
    ],
)
def test_the_run_says_what_is_not_asked_for(asked: Any, run: Any, expected: Execution) -> None:
    loop, _, _ = loop_of(FakePolicy(execution=run), execution=asked)
    assert loop.execution == expected
    assert str(expected) in str(loop.run(3))


def test_a_server_that_averages_chunks_itself() -> None:
    policy = FakePolicy(lambda number, obs: obs["state"][None], execution={"mode": "temporal_ensemble"}, delay=0.03)
    with pytest.raises(Stopped, match="the server averages chunks and sends one action at a time"):
        loop_of(policy, execution="async")
    loop, robot, _ = loop_of(policy)
    report = loop.run(10)  # slower, but asked once for each action
    assert report.chunks == 10 and report.held_cycles == 9 and len(robot.sent) == 19


@pytest.mark.parametrize(
    ("execution", "delay", "told"),
    [
        (Execution(execute_steps=1), 0.005, [[0], [1], [2], [3], [4], [5]]),
        (Execution(execute_steps=2), 0.005, [[0], [1, 2], [3, 4], [5, 6]]),
        (Execution(execute_steps=4), 0.05, [[0], [2, 3, 4], [6, 7, 8]]),
        (Execution("async", execute_steps=5), 0.05, [[0], [3, 4, 5], [8, 9, 10]]),
    ],
)
def test_a_server_gets_the_observations_of_the_steps_before(execution: Execution, delay: float, told: Any) -> None:
    """The state tells the number of the step, since each action is one more."""
    policy = FakePolicy(
        lambda number, obs: obs["state"] + 0.01 * (1 + np.arange(10)[:, None]) + np.zeros((1, 3)),
        delay=delay,
        temporal_context=3,
    )
    loop, _, _ = loop_of(policy, execution=execution)
    loop.run(20)
    seen = [[*earlier, obs] for earlier, obs in zip(policy.earlier, policy.seen)]
    steps = [[round(100 * float(obs["state"][0])) for obs in request] for request in seen]
    assert steps[: len(told)] == told


def test_a_server_that_was_lost_gets_the_whole_history_again() -> None:
    policy = Fails(ServerTimeout("no answer"), begin=3, number=2, delay=0.005, temporal_context=3)
    loop, _, _ = loop_of(policy, execution=Execution(execute_steps=1))
    loop.run(10)
    assert [len(earlier) for earlier in policy.earlier] == [0, 0, 0, 2, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "settings", [{"mode": "fast"}, {"blend": "mean"}, {"execute_steps": 0}, {"ensemble_window": 0}]
)
def test_wrong_execution(settings: Any) -> None:
    with pytest.raises(ValueError, match="it has to be"):
        Execution(**settings)
    with pytest.raises(ValueError, match="does not apply"):
        Execution("temporal_ensemble", 5)


# Safety ----------------------------------------------------------------------------------------------


def test_values_stay_within_the_limits_of_training() -> None:
    loop, robot, _ = loop_of(FakePolicy(lambda number, obs: np.tile([3.0, -3.0, 0.0], (10, 1))))
    report = loop.run(20)
    assert steps_of(robot).max() == pytest.approx(1.1) and steps_of(robot).min() == pytest.approx(-1.1)
    assert report.beyond_limits == 20 and report.clamped == {"waist": 20, "elbow": 20}


def test_steps_are_limited() -> None:
    policy = FakePolicy(lambda number, obs: [[0.0, 0.0, 0.0]] + [[1.0, -0.1, 0.0]] * 9)
    loop, robot, _ = loop_of(policy, execution=Execution(execute_steps=10))
    report = loop.run(10)
    assert np.abs(np.diff(steps_of(robot), axis=0)).max() == pytest.approx(0.5)  # 2 rad in 0.08 s at 50 Hz
    assert report.too_fast == 1 and report.clamped == {"waist": 1}
    assert "1 to the largest step; waist 1" in str(report)


def test_limits_can_be_given() -> None:
    policy = FakePolicy(lambda number, obs: np.tile([0.3, 0.3, 0.5], (10, 1)), action_ranges=None)
    with pytest.raises(Stopped, match="does not say the ranges of actions: give all of"):
        loop_of(policy)[0].run(1)
    safety = Safety(low=-1, high=[1, 0.1, 1], max_step=0.05, ramp_step=0.02)
    loop, robot, _ = loop_of(policy, safety=safety)
    loop.run(30)
    assert robot.pose == pytest.approx([0.3, 0.1, 0.5])
    assert np.abs(np.diff(steps_of(robot), axis=0)).max() <= 0.05 + 1e-9
    for wrong in ({"low": [1, 2]}, {"max_step": 0}, {"high": np.nan}):
        given = {"low": -1, "high": 1, "max_step": 1, "ramp_step": 1, **wrong}
        with pytest.raises(Stopped, match="Safety"):
            loop_of(policy, safety=Safety(**given))[0].run(1)


def test_the_robot_goes_to_the_first_action_slowly_and_looks_again() -> None:
    target = [0.8, 0.0, 0.0]
    policy = FakePolicy(lambda number, obs: np.tile(target, (10, 1)))
    loop, robot, _ = loop_of(policy)
    report = loop.run(10)
    sent = steps_of(robot)[:, 0]
    assert np.diff([0.0, *sent]).max() <= 2 / 2 / 50 + 1e-9, "the whole range takes 2 s"
    assert report.ramp_cycles == 40 and len(sent) == 50
    assert policy.resets == 2 and len(policy.seen) == 2
    np.testing.assert_allclose(policy.seen[1]["state"], target, atol=1e-6)


def test_no_motion_without_a_known_pose() -> None:
    policy = FakePolicy(state_names=None)
    robot = FakeRobot(FakeClock())
    robot.state_names = None
    loop, robot, _ = loop_of(policy, robot=robot)
    with pytest.raises(Stopped, match="pose is not known"):
        loop.run(1)
    assert not robot.sent
    loop, robot, _ = loop_of(policy, robot=robot, safety=Safety(ramp_step=np.inf))
    assert loop.run(1).cycles == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_stop_the_robot(value: float) -> None:
    reasons: list[str] = []

    def chunk(number: int, obs: Any) -> np.ndarray:
        actions = np.tile(obs["state"], (10, 1))
        actions[3, 1] = value if number == 1 else actions[3, 1]
        return actions

    loop, robot, _ = loop_of(FakePolicy(chunk), on_stop=reasons.append)
    with pytest.raises(Stopped, match="NaN or Inf for elbow") as stopped:
        loop.run(100)
    assert len(robot.sent) == 10, "nothing of the chunk is sent"
    assert robot.stops == 1 and reasons == [str(stopped.value)]
    assert loop.report.stopped == reasons[0] and "Stopped:" in str(loop.report)


@pytest.mark.parametrize("actions", [np.zeros((10, 2)), np.zeros(3), np.zeros((0, 3)), np.array([["a", "b", "c"]])])
def test_actions_of_another_robot_stop_it(actions: np.ndarray) -> None:
    policy = FakePolicy()
    policy.infer = lambda obs, earlier=(): {"actions": actions}  # type: ignore[method-assign]
    loop, robot, _ = loop_of(policy)
    with pytest.raises(Stopped, match="the robot has 3 action dimensions"):
        loop.run(5)
    assert not robot.sent and robot.stops == 1


def test_a_frozen_camera_stops_the_robot() -> None:
    loop, robot, _ = loop_of(FakePolicy())
    usual = robot.get_observation

    def freezes() -> dict[str, Any]:
        robot.frozen = len(robot.sent) >= 20
        return usual()

    robot.get_observation = freezes  # type: ignore[method-assign]
    with pytest.raises(Stopped, match=r"camera top has sent the same frame for 0\.5\d s"):
        loop.run(500)
    assert 44 <= len(robot.sent) <= 47


def test_times_of_frames_count_instead_of_pixels() -> None:
    loop, robot, clock = loop_of(FakePolicy())
    robot.frozen = True
    usual = robot.get_observation
    robot.get_observation = lambda: {**usual(), "time_top": clock.now}  # type: ignore[method-assign]
    assert loop.run(60).cycles == 60


def test_a_robot_whose_state_is_not_finite_is_stopped() -> None:
    robot = FakeRobot(FakeClock(), pose=[0, np.nan, 0])
    loop, robot, _ = loop_of(FakePolicy(), robot=robot)
    with pytest.raises(Stopped, match="the robot's state holds NaN or Inf: elbow"):
        loop.run(1)


def test_joints_are_matched_by_name() -> None:
    policy = FakePolicy(lambda number, obs: np.tile([0.1, 0.2, 0.7], (10, 1)))
    robot = FakeRobot(FakeClock(), pose=[0.5, 0.15, 0.05], names=["gripper", "elbow", "waist"])
    loop, robot, _ = loop_of(policy, robot=robot)
    loop.run(40)
    np.testing.assert_allclose(policy.seen[0]["state"], [0.05, 0.15, 0.5])
    np.testing.assert_allclose(robot.sent[-1], [0.7, 0.2, 0.1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["waist", "elbow", "hand"], "state_names of the robot lacks gripper; it has waist, elbow, hand"),
        (["waist", "elbow", "gripper", "wrist"], "action_names of the policy lacks wrist"),
        (["waist", "elbow", "gripper", "waist"], "has waist twice"),
        (None, "the robot has no state_names, so its order of joints cannot be compared"),
    ],
)
def test_joints_that_do_not_match(names: Any, message: str) -> None:
    robot = FakeRobot(FakeClock(), names=names)
    loop, robot, _ = loop_of(FakePolicy(), robot=robot)
    with pytest.raises(Stopped, match=message):
        loop.run(1)
    assert not robot.sent


def test_names_that_are_not_known_are_said() -> None:
    said: list[str] = []
    loop, _, _ = loop_of(FakePolicy(state_names=None, action_names=None), say=said.append)
    loop.run(1)
    assert said == [
        f"the policy does not name its {what}s: they are taken in their order, unchecked"
        for what in ("state", "action")
    ]
    robot = FakeRobot(FakeClock(), names=None)
    loop, _, _ = loop_of(FakePolicy(), robot=robot, safety=Safety(match_names=False))
    assert len(loop.run(1).notes) == 2


def test_cameras_are_matched_by_name_and_colour_order() -> None:
    policy = FakePolicy()
    loop, robot, _ = loop_of(policy)
    robot.color_order = "bgr"  # type: ignore[attr-defined]
    loop.run(1)
    assert (policy.seen[0]["image_top"][..., 0] == 7).all()
    assert "image_other" not in policy.seen[0]
    cameras = {"wrist": {"height": 4, "width": 6}}
    loop, robot, _ = loop_of(FakePolicy(cameras=cameras))
    with pytest.raises(Stopped, match="the robot has no camera wrist; it has top, other"):
        loop.run(1)
    assert not robot.sent


# The server ------------------------------------------------------------------------------------------


class Fails(FakePolicy):
    """A policy whose server fails from a request on, for some requests; then it has to be connected again."""

    def __init__(self, error: Exception, begin: int = 1, number: int = 1000, **changes: Any) -> None:
        super().__init__(**changes)
        self.connected = True
        self.error, self.failing = error, range(begin, begin + number)
        self.requests = 0

    def infer(self, obs: Any, earlier: Any = ()) -> dict[str, Any]:
        self.requests += 1
        if self.requests - 1 in self.failing:
            self.connected = False
            raise self.error
        return super().infer(obs, earlier)

    def connect(self) -> None:
        self.connected = True


@pytest.mark.parametrize("execution", ["chunk", "async", "temporal_ensemble"])
def test_a_server_that_is_away_holds_the_robot_then_stops_it(execution: str) -> None:
    said: list[str] = []
    policy = Fails(ServerUnreachable("the connection broke"), delay=0.01)
    loop, robot, _ = loop_of(policy, execution=execution, say=said.append)
    with pytest.raises(Stopped, match=r"no action of the policy for 2\.0 s: the connection broke"):
        loop.run(1000)
    assert said == ["the connection broke; trying again while the robot holds"]
    assert 99 <= loop.report.held_cycles <= 101
    held = steps_of(robot)[10:]
    assert len(held) >= 99 and (held == held[0]).all()
    assert robot.stops == 1


def test_a_server_that_comes_back_is_used_again() -> None:
    policy = Fails(ServerTimeout("no answer"), number=20, delay=0.01)
    loop, _, _ = loop_of(policy)
    report = loop.run(50)
    assert report.lost == 20 and report.stopped is None
    assert len(policy.seen) == 5


def test_the_loop_stops_at_once_if_configured() -> None:
    loop, robot, _ = loop_of(Fails(ServerUnreachable("the connection broke")), reconnect=False)
    with pytest.raises(Stopped, match="the connection broke"):
        loop.run(1000)
    assert len(robot.sent) == 10 and robot.stops == 1


def test_an_error_of_the_server_stops_the_robot() -> None:
    loop, robot, _ = loop_of(Fails(ServerError("the policy server says: image_top has another size")))
    with pytest.raises(Stopped, match="the policy server says: image_top has another size"):
        loop.run(1000)
    assert robot.stops == 1


def test_a_server_that_never_answers_moves_nothing() -> None:
    loop, robot, _ = loop_of(FakePolicy(delay=1e9), safety=Safety(start_after=3))
    with pytest.raises(Stopped, match=r"no action of the policy for 3\.0 s"):
        loop.run(10)
    assert not robot.sent


def test_an_error_of_the_robot_stops_it_and_keeps_its_type() -> None:
    loop, robot, _ = loop_of(FakePolicy())

    def broken(action: np.ndarray) -> None:
        raise OSError("the bus is off")

    robot.send_action = broken  # type: ignore[method-assign]
    robot.stop = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(Stopped, match="OSError: the bus is off") as stopped:
        loop.run(10)
    assert isinstance(stopped.value.__cause__, OSError)
    assert any("stopping the robot failed" in note for note in loop.report.notes)


def test_ctrl_c_stops_the_robot() -> None:
    loop, robot, _ = loop_of(FakePolicy())

    def interrupted(action: np.ndarray) -> None:
        raise KeyboardInterrupt

    robot.send_action = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run(10)
    assert robot.stops == 1 and loop.report.stopped == "interrupted"


def test_the_seam_is_measured() -> None:
    policy = FakePolicy(
        lambda number, obs: np.tile([0.05 * (number % 2), 0, 0], (10, 1)) + 0.001 * np.arange(10)[:, None]
    )
    report = loop_of(policy)[0].run(30)
    assert report.seam == pytest.approx(0.059, abs=1e-6) and report.step == pytest.approx(0.001, abs=1e-6)
    # The step from the robot's pose to the first action is no seam.
    report = loop_of(FakePolicy(lambda number, obs: np.full((10, 3), 0.03)))[0].run(30)
    assert (report.ramp_cycles, report.seam, report.step) == (0, 0, 0)
