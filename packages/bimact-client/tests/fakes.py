"""A robot, a clock, a policy and a worker whose times are exact."""

from __future__ import annotations

from typing import Any, Callable, Mapping

import numpy as np

from bimact_client.control import Answer, ControlLoop

NAMES = ["waist", "elbow", "gripper"]


def metadata(**changes: Any) -> dict[str, Any]:
    return {
        "protocol_version": 1,
        "action_names": NAMES,
        "state_names": NAMES,
        "control_hz": 50,
        "cameras": {"top": {"height": 4, "width": 6, "color_order": "rgb"}},
        "chunk_size": 10,
        "execution": {"mode": "chunk", "execute_steps": 10},
        "action_ranges": {"low": [-1.0, -1.0, 0.0], "high": [1.0, 1.0, 1.0]},
        **changes,
    }


class FakeClock:
    """Time goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


class FakeRobot:
    """Goes where it is sent, at once; notes each action with its time."""

    def __init__(self, clock: Any, pose: Any = (0.0, 0.0, 0.0), names: Any = NAMES, work: float = 0.001) -> None:
        self.clock, self.work = clock, work
        self.pose = np.array(pose, np.float64)
        self.state_names = self.action_names = names
        self.sent: list[np.ndarray] = []
        self.times: list[float] = []
        self.frozen = False
        self.stops = 0

    def get_observation(self) -> dict[str, Any]:
        self.clock.sleep(self.work)
        number = 0 if self.frozen else len(self.times) + int(1000 * self.clock.monotonic())
        image = np.full((4, 6, 3), number % 251, np.uint8)
        image[..., 2] = 7
        return {"state": self.pose.copy(), "image_top": image, "image_other": image}

    def send_action(self, action: np.ndarray) -> None:
        self.sent.append(action)
        self.times.append(self.clock.monotonic())
        self.pose = action

    def stop(self) -> None:
        self.stops += 1


class FakePolicy:
    """Chunks by a function of the number of the request and the observation; keeps what it saw."""

    def __init__(
        self, chunk: Callable[[int, Mapping[str, Any]], Any] | None = None, delay: float = 0.005, **changes: Any
    ) -> None:
        self.metadata = metadata(**changes)
        self.chunk = chunk or (lambda number, obs: np.tile(obs["state"], (10, 1)) + 0.01 * np.arange(10)[:, None])
        self.delay = delay
        self.seen: list[Mapping[str, Any]] = []
        self.earlier: list[Any] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def infer(self, obs: Mapping[str, Any], earlier: Any = ()) -> dict[str, Any]:
        self.seen.append(obs)
        self.earlier.append(earlier)
        return {"actions": np.asarray(self.chunk(len(self.seen) - 1, obs), np.float32)}


class FakeWorker:
    """Answers after `client.delay` seconds of the fake clock."""

    def __init__(self, client: Any, monotonic: Any) -> None:
        self.client, self.clock = client, monotonic.__self__
        self.busy = False

    def submit(self, step: int, obs: Mapping[str, Any], earlier: Any) -> None:
        self.busy = True
        now = self.clock.now
        try:
            if not getattr(self.client, "connected", True):
                self.client.connect()
                self._answer = Answer(step, now, now + self.client.delay)
            else:
                self._answer = Answer(step, now, now + self.client.delay, self.client.infer(obs, earlier))
        except Exception as error:
            self._answer = Answer(step, now, now + self.client.delay, error=error)

    def answer(self, wait: float) -> Answer | None:
        ready = self._answer.received
        if ready > self.clock.now + max(wait, 0.0):
            self.clock.now += max(wait, 0.0)
            return None
        self.clock.now = max(self.clock.now, ready)
        self.busy = False
        return self._answer

    def close(self) -> None:
        pass


def loop_of(policy: FakePolicy, **settings: Any) -> tuple[ControlLoop, FakeRobot, FakeClock]:
    """A loop on the fake clock."""
    clock = FakeClock()
    robot = settings.pop("robot", None) or FakeRobot(clock)
    robot.clock = clock
    settings.setdefault("say", lambda text: None)
    return ControlLoop(robot, policy, clock=clock, worker=FakeWorker, **settings), robot, clock
