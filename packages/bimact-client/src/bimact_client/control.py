"""The control loop: observations to the policy, checked actions to the robot, at a constant rate.

Letters: S state dimensions, A action dimensions, H steps of a chunk.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from bimact_client.client import ServerError, ServerUnreachable
from bimact_client.execution import Execution, Plan
from bimact_client.recording import Recording
from bimact_client.safety import Guard, Safety, Stopped, order_of


@dataclass
class Report:
    """What happened in one run of the loop.

    Attributes:
        cycles: of the loop.
        seconds: from its first cycle to its last.
        late_cycles: those whose work took longer than the cycle.
        held_cycles: those after the first action that had no fresh action, so that the robot held the last one.
        ramp_cycles: those on the way to the first action.
        execution: of chunks.
        chunks: how many arrived.
        dropped: actions of chunks that the delay had used up.
        latency_ms: from observation to chunk, of each chunk.
        lost: how often the server was not there, or did not answer in time.
        beyond_limits: cycles at which a value was clamped to its limits.
        too_fast: cycles at which a change was clamped to the largest step.
        clamped: name → cycles, of each action dimension that was clamped.
        seam: largest change of an action where a new chunk begins.
        step: largest change of an action elsewhere.
        notes: what could not be checked, and other remarks.
        stopped: why the loop stopped the robot; None if it did not.
    """

    cycles: int = 0
    seconds: float = 0.0
    late_cycles: int = 0
    held_cycles: int = 0
    ramp_cycles: int = 0
    execution: str = ""
    chunks: int = 0
    dropped: int = 0
    latency_ms: list[float] = field(default_factory=list)
    lost: int = 0
    beyond_limits: int = 0
    too_fast: int = 0
    clamped: dict[str, int] = field(default_factory=dict)
    seam: float = 0.0
    step: float = 0.0
    notes: list[str] = field(default_factory=list)
    stopped: str | None = None

    @property
    def hz(self) -> float:
        """Cycles per second."""
        return self.cycles / self.seconds if self.seconds else 0.0

    def latency(self, percent: float) -> float:
        """A percentile of the latency, in milliseconds."""
        return float(np.percentile(self.latency_ms, percent)) if self.latency_ms else math.nan

    def __str__(self) -> str:
        """Some lines for a terminal."""
        lines = [
            f"Rate:     {self.hz:.2f} Hz over {self.seconds:.1f} s; {self.late_cycles} of {self.cycles} cycles late, "
            f"{self.held_cycles} held, {self.ramp_cycles} on the ramp",
            f"Chunks:   {self.chunks}, {self.execution}; {self.dropped} steps dropped",
        ]
        if self.chunks:
            lines += [
                f"Latency:  {self.latency(50):.1f} ms median, {self.latency(90):.1f} ms p90, {self.latency(99):.1f} ms "
                f"p99; connection lost {self.lost} times",
                f"Seams:    largest change of an action {self.seam:.4f} where a chunk begins, "
                f"{self.step:.4f} elsewhere",
                f"Clamped:  {self.beyond_limits} cycles to limits, {self.too_fast} to the largest step"
                + "".join(f"; {name} {count}" for name, count in self.clamped.items()),
            ]
        lines += [f"Note:     {note}" for note in self.notes]
        return "\n".join(lines + ([] if self.stopped is None else [f"Stopped:  {self.stopped}"]))


@dataclass(frozen=True)
class Answer:
    """What came of a request: a reply, an error, or neither where only the connection was made."""

    step: int
    asked: float
    received: float
    reply: Mapping[str, Any] | None = None
    error: BaseException | None = None


class Worker:
    """Asks the policy in a thread of its own, one request at a time.

    Args:
        client: the policy.
        clock: gives the time in seconds.
    """

    def __init__(self, client: Any, clock: Callable[[], float]) -> None:
        self._client, self._clock = client, clock
        self._requests: queue.Queue[Any] = queue.Queue()
        self._answers: queue.Queue[Answer] = queue.Queue()
        self.busy = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, step: int, obs: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> None:
        """Ask for the chunk from a step on, with the observations of steps before that the policy has not got."""
        self.busy = True
        self._requests.put((step, obs, earlier, self._clock()))

    def answer(self, wait: float) -> Answer | None:
        """The answer, if it comes within `wait` seconds."""
        try:
            answer = self._answers.get(timeout=wait) if wait > 0 else self._answers.get_nowait()
        except queue.Empty:
            return None
        self.busy = False
        return answer

    def close(self) -> None:
        """Wait for the present request: the client is free for others then."""
        self._requests.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            request = self._requests.get()
            if request is None:
                return
            step, obs, earlier, asked = request
            try:
                # An observation from before a reconnection would be old.
                if not getattr(self._client, "connected", True):
                    self._client.connect()
                    reply = None
                else:
                    reply = self._client.infer(obs, earlier) if earlier else self._client.infer(obs)
                self._answers.put(Answer(step, asked, self._clock(), reply))
            except BaseException as error:
                self._answers.put(Answer(step, asked, self._clock(), error=error))


class ControlLoop:
    """Drives a robot by a policy.

    The robot has `get_observation()`, which returns `state` (S,) and `image_<camera>` (H, W, 3) uint8, and
    `send_action(action)` of (A,) numbers; it may have

    - `state_names`, `action_names`: its joints, in the order of these arrays; they are matched by name;
    - `color_order`: `rgb` (default) or `bgr`;
    - `stop()`, which is called when the loop stops because of an error or Ctrl-C;
    - `time_<camera>` in its observations: a frame's time, which tells frozen cameras instead of the pixels.

    The loop has a deadline for each cycle, on a monotonic clock. A cycle that is late does not move the others; one
    that is late by a whole cycle or more is left out, and not made up for by a burst of actions.

    Args:
        robot: see above.
        client: a `PolicyClient`, or a policy in this process with its `metadata`, `infer` and `reset`
            (`bimact.deploy.in_process`).
        hz: actions per second; None: the server's `control_hz`.
        execution: `chunk`, `async`, `temporal_ensemble` or an `Execution`; None: as the policy's run says.
        safety: limits on what reaches the robot.
        reconnect: whether the robot waits for a server that was lost (`Safety.stop_after`), or the loop stops at once.
        record: directory for a dataset of what happened; None: no recording.
        on_stop: called with the reason before `robot.stop()`, for an emergency stop.
        say: called with each note.
        clock: has `monotonic()` and `sleep(seconds)`; for simulated time.
        worker: what asks the policy, with the methods of `Worker`; for simulated time.

    Raises:
        Stopped: if the rate is not known, or the policy cannot be executed like this.
    """

    def __init__(
        self,
        robot: Any,
        client: Any,
        hz: float | None = None,
        execution: str | Execution | None = None,
        safety: Safety | None = None,
        reconnect: bool = True,
        record: str | os.PathLike[str] | None = None,
        on_stop: Callable[[str], None] | None = None,
        say: Callable[[str], None] = print,
        clock: Any = time,
        worker: Callable[..., Any] = Worker,
    ) -> None:
        self.robot, self.client, self.record, self.on_stop = robot, client, record, on_stop
        self.safety = Safety() if safety is None else safety
        self.reconnect = reconnect
        self.metadata: Mapping[str, Any] = client.metadata
        self.execution = Execution.of(execution, self.metadata)
        self.report = Report()  # of the last run
        self._say, self._clock, self._worker = say, clock, worker
        self._said: set[str] = set()
        trained = self.metadata.get("control_hz")
        if hz is None and trained is None:
            raise Stopped("the server does not say its control frequency: give hz")
        self.hz = float(trained if hz is None else hz)
        self._hz_note = None
        self._context = int(self.metadata.get("temporal_context") or 1)
        self._max_delay = int(self.metadata.get("max_delay") or 0)
        if self.execution.mode == "async" and (self.metadata.get("execution") or {}).get("mode") == "temporal_ensemble":
            raise Stopped(
                "the server averages chunks and sends one action at a time, so there is nothing to execute meanwhile: "
                "serve the policy with --execute_steps, or give another execution than async"
            )
        if trained is not None and abs(self.hz - trained) > 1e-3 * trained:
            self._hz_note = f"the loop runs at {self.hz:g} Hz, the policy was trained at {trained:g} Hz"

    def run(self, steps: int | None = None) -> Report:
        """Run one episode.

        Args:
            steps: actions of the policy; None: until Ctrl-C or an error.

        Returns:
            what happened.

        Raises:
            Stopped: for any reason not to move on; the robot was stopped, and `self.report` says what happened.
            KeyboardInterrupt: after Ctrl-C; the robot was stopped.
        """
        report = self.report = Report()
        worker, recording, guard, plan = None, None, None, None
        try:
            self._match_names(report)
            guard = Guard(self.safety, self.metadata, self.hz)
            plan = Plan(self.execution)
            report.execution = str(self.execution)
            self.client.reset()
            worker = self._worker(self.client, self._clock.monotonic)
            if self.record is not None:
                state_names = self.metadata.get("state_names")
                try:
                    recording = Recording(self.record, self.hz, guard.names, state_names, self.metadata.get("task"))
                except ValueError as error:
                    raise Stopped(str(error)) from error
            self._cycles(steps, report, worker, guard, plan, recording)
        except BaseException as error:
            # The robot first, the rest afterwards.
            reason = str(error) if isinstance(error, (Stopped, ServerError)) else f"{type(error).__name__}: {error}"
            report.stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else reason
            for stop in (
                partial(self.on_stop, report.stopped) if self.on_stop else None,
                getattr(self.robot, "stop", None),
            ):
                if stop is not None:
                    try:
                        stop()
                    except Exception as failure:
                        self._note(report, f"stopping the robot failed: {type(failure).__name__}: {failure}")
            if isinstance(error, Stopped) or not isinstance(error, Exception):
                raise
            raise Stopped(reason) from error
        finally:
            if worker is not None:
                worker.close()
            if guard is not None and plan is not None:
                report.dropped = plan.dropped
                report.beyond_limits, report.too_fast = guard.beyond_limits, guard.too_fast
                report.clamped = {name: int(count) for name, count in zip(guard.names, guard.clamped) if count}
            if recording is not None:
                try:
                    recording.close()
                except ValueError as failure:
                    self._note(report, str(failure))
        return report

    def _cycles(
        self,
        steps: int | None,
        report: Report,
        worker: Any,
        guard: Guard,
        plan: Plan,
        recording: Recording | None,
    ) -> None:
        clock, period = self._clock, 1 / self.hz
        last: np.ndarray | None = None  # action sent, in the policy's order
        ramp: list[np.ndarray] = []
        # Whether the first action is the present pose; without a ramp that does not matter.
        approached = not np.isfinite(guard.ramp_step).any()
        asked = 0  # steps recorded before the present request
        past: dict[int, Mapping[str, Any]] = {}  # position → the newest observation there, of the policy's history
        told = -1  # position of the newest observation that the server has
        is_seam = False
        failure = ""
        recorded = 0
        begin = fresh_at = clock.monotonic()
        slot = 0  # the cycle's number on the clock
        while steps is None or plan.position < steps:
            started = clock.monotonic()
            deadline = begin + (slot + 1) * period
            asks = not ramp and plan.wants_chunk and not worker.busy
            obs, pose = self._observe(guard, started, asks or recording is not None or self._context > 1)
            if plan.position not in past:
                past.pop(plan.position - self._context, None)
            past[plan.position] = obs

            # Ask for a chunk, and take one up.
            if asks:
                # A policy that was trained for it continues the actions that are executed until its chunk comes.
                late = math.ceil(max(report.latency_ms[-10:], default=0.0) / 1000 * self.hz - 1e-6)
                given = plan.upcoming(min(late, self._max_delay))
                asking = {**obs, "given_actions": given.astype(np.float32)} if len(given) else obs
                worker.submit(
                    plan.position, asking, [past[step] for step in sorted(past) if told < step < plan.position]
                )
                asked, told = recorded, plan.position
            wait = deadline - 0.1 * period - clock.monotonic() if plan.waits and not ramp else 0.0
            answer = worker.answer(wait) if worker.busy else None
            if answer is not None and answer.reply is None:
                told = -1  # the server has lost the history
            if answer is not None and answer.error is not None:
                failure = str(answer.error)
                if not isinstance(answer.error, ServerUnreachable) or not self.reconnect:
                    raise answer.error
                report.lost += 1
                self._note(report, f"{failure}; trying again while the robot holds")
            elif answer is not None and answer.reply is not None:
                failure = ""
                chunk = guard.checked_chunk(answer.reply.get("actions"))
                report.chunks += 1
                report.latency_ms.append(1000 * (answer.received - answer.asked))
                if recording is not None:
                    recording.chunk(asked, chunk, report.latency_ms[-1])
                plan.add(chunk, answer.step)
                is_seam = True
                if not approached:
                    if pose is None:
                        raise Stopped(
                            "the robot's pose is not known (its state has no values with the names of the actions), so "
                            "it cannot go to the first action slowly: name them, or give Safety(ramp_step=numpy.inf)"
                        )
                    last, approached = pose, True
                    ramp = guard.ramp(pose, chunk[0])
                    if ramp:
                        plan.clear()  # after the ramp the policy sees the robot from where it is then
                        self.client.reset()
                        past.clear()
                        told = -1

            # Send an action: on the ramp, of the plan, or the last one again.
            fresh = True
            if ramp:
                action: np.ndarray | None = ramp.pop(0)
                report.ramp_cycles += 1
                fresh_at = clock.monotonic()
            elif plan.has_action:
                has_begun = plan.position > 0  # the first action follows no other one of the policy
                action = guard.limited(plan.next(), last)
                if last is not None and has_begun:
                    change = float(np.abs(action - last).max())
                    if is_seam:
                        report.seam = max(report.seam, change)
                    else:
                        report.step = max(report.step, change)
                is_seam = False
                fresh_at = clock.monotonic()
            else:
                fresh, action = False, last if report.chunks else None
                without = clock.monotonic() - fresh_at
                limit = self.safety.stop_after if report.chunks else self.safety.start_after
                if without > limit:
                    raise Stopped(f"no action of the policy for {without:.1f} s" + (f": {failure}" if failure else ""))
            if action is not None:
                report.held_cycles += not fresh
                self.robot.send_action(action[self._action_order].copy())
                last = action
                if recording is not None:
                    recording.step(obs, action, fresh)
                recorded += 1

            # Wait for the next cycle.
            report.cycles += 1
            now = clock.monotonic()
            report.seconds = max(now, deadline) - begin
            report.late_cycles += now > deadline
            slot = max(slot + 1, math.floor((now - begin) / period))
            # After a late cycle, two actions must not follow each other at once.
            start = max(begin + slot * period, now + 0.5 * period if now > deadline else 0.0)
            if start > now:
                clock.sleep(start - now)

    def _match_names(self, report: Report) -> None:
        """Find each of the policy's joints and cameras in the robot's, before anything moves."""
        orders = {}
        for what in ("state", "action"):
            wanted, there = self.metadata.get(f"{what}_names"), getattr(self.robot, f"{what}_names", None)
            if wanted and there:
                names = f"{what}_names of the robot"
                orders[what] = order_of(wanted, there, names)
                if what == "action":
                    orders[what] = order_of(there, wanted, "action_names of the policy")
            elif wanted and self.safety.match_names:
                raise Stopped(
                    f"the robot has no {what}_names, so its order of joints cannot be compared with the policy's "
                    f"({', '.join(wanted)}): name them, or give Safety(match_names=False)"
                )
            else:
                side = "policy" if there else "robot"
                self._note(report, f"the {side} does not name its {what}s: they are taken in their order, unchecked")
        self._state_order: Any = orders.get("state", slice(None))
        self._action_order: Any = orders.get("action", slice(None))
        if self._hz_note:
            self._note(report, self._hz_note)
        # Where the present value of each action is in the robot's state.
        there = getattr(self.robot, "state_names", None) or self.metadata.get("state_names")
        wanted = self.metadata.get("action_names") or getattr(self.robot, "action_names", None)
        known = there and wanted and set(wanted) <= set(there)
        self._pose_order = order_of(wanted, there, "state") if known else None  # type: ignore[arg-type]
        color = str(getattr(self.robot, "color_order", "rgb")).lower()
        if color not in ("rgb", "bgr"):
            raise Stopped(f"the robot's color_order is '{color}', it has to be rgb or bgr")
        self._cameras: dict[str, bool] | None = None  # camera → whether its channels are reversed
        cameras = self.metadata.get("cameras")
        if cameras is not None:
            self._cameras = {
                name: str((camera or {}).get("color_order", "rgb")).lower() != color for name, camera in cameras.items()
            }

    def _observe(self, guard: Guard, now: float, needs_images: bool) -> tuple[dict[str, Any], np.ndarray | None]:
        """A copy of the robot's observation in the policy's order, and the pose (A,) if it is known.

        Images that nobody needs are left out if their cameras say the time of each frame.
        """
        raw = self.robot.get_observation()
        state = np.asarray(raw.get("state"), np.float64)
        names = getattr(self.robot, "state_names", None) or self.metadata.get("state_names")
        if state.ndim != 1 or (names and len(state) != len(names)):
            raise Stopped(f"the robot's state has shape {state.shape}, it has to be ({len(names) if names else 'S'},)")
        if not np.isfinite(state).all():
            place = int(np.flatnonzero(~np.isfinite(state))[0])
            raise Stopped(f"the robot's state holds NaN or Inf: {names[place] if names else place}")
        images = {name[len("image_") :]: image for name, image in raw.items() if name.startswith("image_")}
        wanted = dict.fromkeys(images, False) if self._cameras is None else self._cameras
        missing = [name for name in wanted if name not in images]
        if missing:
            raise Stopped(f"the robot has no camera {', '.join(missing)}; it has {', '.join(images) or 'none'}")
        obs: dict[str, Any] = {"state": state[self._state_order].astype(np.float32)}
        obs |= {name: raw[name] for name in ("task", "prompt") if name in raw}
        frames = {}
        for name, reverse in wanted.items():
            frames[name] = raw.get(f"time_{name}")
            if not needs_images and frames[name] is not None:
                continue
            image = np.asarray(images[name])
            content = (image[..., ::-1] if reverse else image).tobytes()  # drivers may write into their own arrays
            obs[f"image_{name}"] = np.frombuffer(content, image.dtype).reshape(image.shape)
            if frames[name] is None:
                frames[name] = content
        guard.check_frames(frames, now)
        pose = None if self._pose_order is None else state[self._pose_order]
        return obs, pose

    def _note(self, report: Report, text: str) -> None:
        if text not in report.notes:
            report.notes.append(text)
        if text not in self._said:
            self._said.add(text)
            self._say(text)
