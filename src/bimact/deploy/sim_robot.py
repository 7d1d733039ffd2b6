"""A simulated robot, driven as a real robot is: an action that comes late is executed late.

In real time the simulation steps in a process of its own on the wall clock. On a simulated clock it steps in this
process as fast as it can, and the policy's answers come after exactly the delay that is asked for, whatever this
machine needs: a rollout gives the same on each machine that computes the same actions.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from bimact_client import ControlLoop, Execution, Report, Safety, Stopped
from bimact_client.control import Answer

from bimact.data.fork_server import without_main_program
from bimact.errors import UserError, in_quotes
from bimact.evaluation.intervals import wilson_interval
from bimact.sim.base import MAX_REWARD, SimulatedTask
from bimact.sim.tasks import find_task

_NO_NEWS = 2.0  # seconds without a step of the simulation, after which it is taken for dead


@dataclass(frozen=True)
class DrivenRollout:
    """One rollout: its seed, the highest reward (4 is success), and what the control loop reports."""

    seed: int
    highest_reward: int
    report: Report


class SimulatedRobot:
    """A task's robot in a process of its own, which steps on the wall clock (see `ControlLoop`).

    Args:
        task: the simulated task.
        cameras: camera → (height, width) of its images.

    Raises:
        UserError: if there is no such task or camera, or the simulation does not start.
    """

    color_order = "rgb"

    def __init__(self, task: str, cameras: dict[str, tuple[int, int]]) -> None:
        self.task = found = _task_with(task, cameras)
        self.state_names, self.action_names = list(found.state_names), list(found.action_names)
        self._dtype = _shared_dtype(found, cameras)
        self._memory = SharedMemory(create=True, size=self._dtype.itemsize)
        context = multiprocessing.get_context("spawn")
        self._lock = context.Lock()
        self._pipe, there = context.Pipe()
        self._process = context.Process(
            target=_simulate, args=(task, cameras, self._memory.name, self._lock, there), daemon=True
        )
        with without_main_program():
            self._process.start()
        there.close()
        self._shared = np.ndarray((1,), self._dtype, self._memory.buf)
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int) -> None:
        """Begin a new episode with the scene of a seed; the simulation has made its first step when this returns."""
        self._pipe.send(seed)
        self._receive()

    def get_observation(self) -> dict[str, Any]:
        """The newest observation: `state` (S,), and `image_<camera>` and `time_<camera>` of each camera."""
        with self._lock:
            now = self._shared[0].copy()
        if time.monotonic() - now["stepped_at"] > _NO_NEWS:
            raise RuntimeError(f"the simulation has made no step for {_NO_NEWS:g} s")
        observation = {name: now[name] for name in now.dtype.names if name.startswith("image_")}
        times = {f"time_{name[len('image_') :]}": int(now["steps"]) for name in observation}
        return {"state": now["state"], **observation, **times}

    def send_action(self, action: np.ndarray) -> None:
        """The action (A,) from the next step on."""
        with self._lock:
            self._shared[0]["action"] = action

    @property
    def highest_reward(self) -> int:
        """The highest stage of the task in this episode, 0 to 4."""
        return int(self._shared[0]["reward"])

    @property
    def late_steps(self) -> int:
        """Steps of the simulation that began more than a control step late, since its process was started."""
        return int(self._shared[0]["late"])

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._shared = np.zeros(1, self._dtype)
        self._memory.close()
        self._memory.unlink()

    def __enter__(self) -> SimulatedRobot:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _receive(self) -> None:
        try:
            if not self._pipe.poll(60):
                raise UserError("the simulation does not answer")
            failure = self._pipe.recv()
        except (EOFError, OSError):
            raise UserError("the simulation's process ended; its message is above") from None
        if failure is not None:
            raise UserError(failure)


class SimulatedClock:
    """Time that goes on when somebody sleeps; `on_tick` is called for each step of the simulation."""

    def __init__(self, fps: int, on_tick: Callable[[], None]) -> None:
        self.now, self._fps, self.on_tick = 0.0, fps, on_tick
        self._ticks = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while (self._ticks + 1) / self._fps <= end + 1e-9:
            self._ticks += 1
            self.now = self._ticks / self._fps
            self.on_tick()
        self.now = max(self.now, end)


class SteppedRobot:
    """A task's robot that steps when a `SimulatedClock` says so; arguments, methods and errors as `SimulatedRobot`'s.

    Images are rendered when they are looked at.
    """

    color_order = "rgb"
    late_steps = 0

    def __init__(self, task: str, cameras: dict[str, tuple[int, int]]) -> None:
        self.task = found = _task_with(task, cameras)
        self.state_names, self.action_names = list(found.state_names), list(found.action_names)
        self.clock = SimulatedClock(found.fps, self._step)
        self._environment, self._cameras = found.environment(), cameras
        self._steps = self.highest_reward = 0

    def reset(self, seed: int) -> None:
        """Begin a new episode with the scene of a seed."""
        self._environment.reset(seed=seed)
        self._action = self._environment.hold()  # it stays where it is until the first action
        self.highest_reward = 0

    def get_observation(self) -> dict[str, Any]:
        """As `SimulatedRobot.get_observation`."""
        found: dict[str, Any] = {"state": self._environment.state().astype(np.float32)}
        for camera, size in self._cameras.items():
            found[f"image_{camera}"] = _Image(partial(self._environment.image, camera, size))
            found[f"time_{camera}"] = self._steps
        return found

    def send_action(self, action: np.ndarray) -> None:
        """The action from the next step on."""
        self._action = action

    def _step(self) -> None:
        self._steps += 1
        self.highest_reward = max(self.highest_reward, int(self._environment.advance(self._action)))

    def close(self) -> None:
        """Free the renderers."""
        self._environment.close()

    def __enter__(self) -> SteppedRobot:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Image:
    """A view that is rendered when it becomes an array."""

    def __init__(self, render: Callable[[], np.ndarray]) -> None:
        self._render = render

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._render()


class _DelayedWorker:
    """In place of the control loop's thread: each answer comes after exactly `delay` of the simulated clock."""

    def __init__(self, client: Any, monotonic: Callable[[], float], *, delay: float, clock: SimulatedClock) -> None:
        self._client, self._delay, self._clock = client, delay, clock
        self._answer: Answer | None = None

    @property
    def busy(self) -> bool:
        return self._answer is not None

    def submit(self, step: int, obs: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> None:
        asked = self._clock.now
        try:
            reply = self._client.infer(obs, earlier) if earlier else self._client.infer(obs)
            self._answer = Answer(step, asked, asked + self._delay, reply)
        except Exception as error:
            self._answer = Answer(step, asked, asked + self._delay, error=error)

    def answer(self, wait: float) -> Answer | None:
        answer = self._answer
        if answer is None:
            return None
        if answer.received > self._clock.now + max(wait, 0.0) + 1e-9:
            self._clock.sleep(max(wait, 0.0))
            return None
        self._clock.sleep(max(answer.received - self._clock.now, 0.0))
        self._answer = None
        return answer

    def close(self) -> None:
        pass


def _task_with(task: str, cameras: Mapping[str, Any]) -> SimulatedTask:
    """The task, which has these cameras.

    Raises:
        UserError: if there is no such task, or it lacks a camera.
    """
    found = find_task(task)
    for camera in cameras:
        if camera not in found.cameras:
            raise UserError(
                f"the policy takes camera '{camera}', which the simulation does not have ({', '.join(found.cameras)})"
            )
    return found


def _shared_dtype(task: SimulatedTask, cameras: dict[str, tuple[int, int]]) -> np.dtype[Any]:
    images = [(f"image_{camera}", np.uint8, (*size, 3)) for camera, size in cameras.items()]
    numbers = [("stepped_at", float), ("steps", np.int64), ("reward", np.int64), ("late", np.int64)]
    vectors = [("state", np.float32, len(task.state_names)), ("action", np.float64, len(task.action_names))]
    return np.dtype([*vectors, *numbers, *images])


def _simulate(task: str, cameras: dict[str, tuple[int, int]], memory: str, lock: Any, pipe: Connection) -> None:
    """The simulation's process: a step at a time, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends this one
    shared_memory = SharedMemory(memory)
    try:
        found = find_task(task)
        fps = found.fps
        shared = np.ndarray((1,), _shared_dtype(found, cameras), shared_memory.buf)
        environment = found.environment()
        environment.reset(seed=0)
        for camera, size in cameras.items():
            environment.image(camera, size)  # the first one takes long
        pipe.send(None)
    except Exception as error:
        pipe.send(f"the simulation does not start: {error}")
        return

    def publish(steps: int, reward: float, late: int) -> None:
        images = {camera: environment.image(camera, size) for camera, size in cameras.items()}
        with lock:
            now = shared[0]
            for camera, image in images.items():
                now[f"image_{camera}"] = image
            now["state"], now["steps"], now["late"] = environment.state(), steps, late
            now["reward"], now["stepped_at"] = reward, time.monotonic()

    try:
        seed = pipe.recv()
        late = 0
        while True:
            environment.reset(seed=seed)
            with lock:
                shared[0]["action"] = environment.hold()  # it stays where it is until the first action
            publish(0, 0, late)
            begin, steps, reward = time.monotonic(), 0, 0.0
            pipe.send(None)
            while not pipe.poll():
                steps += 1
                wait = begin + steps / fps - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                elif wait < -1 / fps:  # the wall clock is not caught up with
                    late += 1
                    begin -= wait
                with lock:
                    action = shared[0]["action"].copy()
                reward = max(reward, environment.advance(action))
                publish(steps, reward, late)
            seed = pipe.recv()
    except (EOFError, OSError):
        pass
    finally:
        environment.close()


class _Prompted:
    """A policy that is told one task with each observation."""

    def __init__(self, client: Any, prompt: str) -> None:
        self._client, self._prompt = client, prompt

    def infer(self, obs: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        told = [{**observation, "prompt": self._prompt} for observation in (*earlier, obs)]
        reply: dict[str, Any] = self._client.infer(told[-1], told[:-1])
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class _Delayed:
    """A policy whose answers come later."""

    def __init__(self, client: Any, delay: float) -> None:
        self._client, self._delay = client, delay

    def infer(self, *observations: Any) -> dict[str, Any]:
        reply: dict[str, Any] = self._client.infer(*observations)
        time.sleep(self._delay)
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _say(line: str) -> None:
    print(line, flush=True)


def drive(
    client: Any,
    task: str,
    *,
    hz: float | None = None,
    execution: str | Execution | None = None,
    safety: Safety | None = None,
    rollouts: int = 1,
    seed: int = 1000,
    delay: float = 0.0,
    record: Path | None = None,
    real_time: bool = True,
    prompt: str | None = None,
    say: Callable[[str], None] = _say,
) -> list[DrivenRollout]:
    """Drive the simulated robot, and print how it went.

    Args:
        client: a `PolicyClient`, or anything else that `ControlLoop` takes.
        task: the simulated task.
        hz: actions per second; None: as the policy was trained.
        execution: how chunks are executed; None: as the policy's run says.
        safety: limits on what reaches the robot.
        rollouts: how many, from scenes with the seeds `seed`, `seed + 1`, …
        seed: of the first scene.
        delay: seconds added to each answer, as a slow network or GPU would.
        record: directory for a dataset of what happened; None: no recording.
        real_time: False: on a simulated clock, as fast as the machine can; answers come after `delay` alone.
        prompt: the policy's name of the task, for a policy that is told its task; None: that of the simulation, or its
            only one.
        say: takes each line.

    Raises:
        UserError: if the policy is for another robot or does not know the task, or the control loop stops.
    """
    metadata = client.metadata
    tasks = metadata.get("tasks") or []
    if tasks:
        prompt = prompt or (tasks[0] if len(tasks) == 1 else task)
        if prompt not in tasks:
            raise UserError(f"the policy is told its task: pass --prompt, one of {in_quotes(tasks)}, not '{prompt}'")
        client = _Prompted(client, prompt)
    cameras = {}
    for camera, size in (metadata.get("cameras") or {}).items():
        if not (size or {}).get("height"):
            raise UserError(f"the server does not say which size the images of camera '{camera}' have")
        cameras[camera] = (int(size["height"]), int(size["width"]))
    results: list[DrivenRollout] = []
    loop = None
    robot: SimulatedRobot | SteppedRobot = (SimulatedRobot if real_time else SteppedRobot)(task, cameras)
    with robot:
        seconds = robot.task.episode_steps / robot.task.fps
        try:
            settings: dict[str, Any] = {"hz": hz, "execution": execution, "safety": safety, "record": record}
            if isinstance(robot, SteppedRobot):
                worker = partial(_DelayedWorker, delay=delay, clock=robot.clock)
                loop = ControlLoop(robot, client, **settings, clock=robot.clock, worker=worker, say=say)
            else:
                loop = ControlLoop(robot, _Delayed(client, delay) if delay else client, **settings, say=say)
            say(
                f"Policy {metadata.get('run', '')} {metadata.get('checkpoint', '')} drives the simulated robot at "
                f"{loop.hz:g} Hz, {loop.execution}" + ("" if real_time else ", on a simulated clock")
            )
            for number in range(seed, seed + rollouts):
                robot.reset(number)
                report = loop.run(round(seconds * loop.hz))
                results.append(DrivenRollout(number, robot.highest_reward, report))
                success = robot.highest_reward == MAX_REWARD
                say(f"\nSeed {number}: {'success' if success else f'no success, reward {robot.highest_reward}'}")
                say(str(report))
        except (Stopped, KeyboardInterrupt) as error:
            if loop is not None and loop.report.cycles:
                say(f"\n{loop.report}")
            if isinstance(error, Stopped):
                raise UserError(str(error)) from error
            raise
        late = robot.late_steps
    successes = sum(result.highest_reward == MAX_REWARD for result in results)
    low, high = wilson_interval(successes, rollouts)
    say(
        f"\nSuccess rate: {successes} of {rollouts} = {successes / rollouts:.1%} (95% interval {low:.1%} to {high:.1%})"
    )
    if late:
        step = 1000 / robot.task.fps
        say(f"Note: this machine was too slow: {late} of the simulation's steps were over {step:.0f} ms late")
    return results
