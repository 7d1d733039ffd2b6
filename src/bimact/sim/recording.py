"""Records scripted demonstrations into a dataset, on all cores; an interrupted recording is resumed.

During a recording its arrays are called `*.partial` and `recording.json` lists the finished episodes; they get their
final names when all are finished. An episode's content depends only on the seed and its number, so the same seed writes
the same bytes with any number of workers and interruptions.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from bimact.data.formats.guide_npy import ACTIONS, JOURNAL, LENGTHS, METADATA, OBSERVATIONS, observation_dtype
from bimact.errors import UserError
from bimact.files import check_writable, flush_to_disk, write_json
from bimact.machine import usable_cores
from bimact.progress import progress_bar
from bimact.sim.base import SimulatedTask
from bimact.sim.perturbations import LOOKS, PERTURBATIONS, Magnitude, check_perturbations
from bimact.sim.tasks import Task, find_task

PARTIAL = ".partial"
_NEXT_TRY = 10_000_000  # added to the seed of a failed demonstration to try again
_DRAWS = 10  # draws of the action noise per scene before the next scene is tried
_CORRELATION = 0.25  # seconds, of the noise on actions


@dataclass(frozen=True)
class RecordingSettings:
    """The settings that the content of a recording depends on.

    Attributes:
        task: name of the simulated task.
        episodes: number of demonstrations.
        cameras: which cameras to record.
        image_size: height and width of the images in pixels.
        noise: uniform noise on the grippers' waypoints, in metres.
        seed: of the first episode's scene; episode i starts from seed + i.
        action_noise: standard deviation of the noise on executed actions (see `action_noise`); the recorded actions
            are those without noise.
        noisy_episodes: number of episodes with this noise, evenly spread; None: half of them if there is any.
        randomize: largest magnitudes of what looks different in each episode (names: `bimact.sim.perturbations.LOOKS`).
        randomize_steps: control steps after which these are drawn again; None: once per episode.
    """

    task: str
    episodes: int = 50
    cameras: tuple[str, ...] = ("top",)
    image_size: tuple[int, int] = (240, 320)
    noise: float = 0.0
    seed: int = 0
    action_noise: float = 0.0
    noisy_episodes: int | None = None
    randomize: Mapping[str, Magnitude] | None = None
    randomize_steps: int | None = None

    def check(self) -> None:
        if self.episodes < 1:
            raise UserError(f"--episodes is {self.episodes}, it has to be at least 1")
        self.found.check_cameras(self.cameras)
        if min(self.image_size) < 8 or max(self.image_size) > 4096:
            raise UserError(f"--image_size is {self.image_size[0]}x{self.image_size[1]}, it has to be 8 to 4096")
        if not 0 <= self.noise <= 0.1:
            raise UserError(f"--noise is {self.noise} m, it has to be from 0 to 0.1")
        if not 0 <= self.action_noise <= 0.2:
            raise UserError(f"--action_noise is {self.action_noise}, it has to be from 0 to 0.2")
        noisy = self.noisy_episodes
        if noisy is not None and not (self.action_noise and 0 <= noisy <= self.episodes):
            raise UserError(f"--noisy_episodes is {noisy}: with --action_noise it may be from 0 to {self.episodes}")
        for name in self.randomize or ():
            if name not in LOOKS:
                raise UserError(f"--randomize has '{name}', which is not one of {', '.join(LOOKS)}")
        if self.randomize and not isinstance(self.found, Task):
            raise UserError(
                f"the simulation of {self.task} is of another package: --randomize is of bimact's own tasks"
            )
        if self.randomize_steps is not None and (not self.randomize or self.randomize_steps < 1):
            raise UserError(f"--randomize_steps is {self.randomize_steps}: with --randomize it may be 1 or more")
        check_perturbations(self.randomize or {}, self.cameras)
        for name, value in (self.randomize or {}).items():
            if PERTURBATIONS[name].neutral == 1 and value == 0:  # each episode draws between a factor and its inverse
                raise UserError(f"--randomize {name} is 0, it has to be a factor above 0")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed is {self.seed}, it has to be from 0 to 2147483647")

    @property
    def found(self) -> SimulatedTask:
        """The task of this name."""
        return find_task(self.task)

    def is_noisy(self, number: int) -> bool:
        """Whether an episode has noise on its executed actions."""
        noisy = self.noisy_episodes
        if noisy is None:
            noisy = self.episodes // 2 if self.action_noise else 0
        return (number + 1) * noisy // self.episodes > number * noisy // self.episodes

    @property
    def steps(self) -> int:
        return self.episodes * self.found.episode_steps

    @property
    def dtype(self) -> np.dtype[Any]:
        return observation_dtype(dict.fromkeys(self.cameras, self.image_size), len(self.found.state_names))

    def as_json(self) -> dict[str, Any]:
        """The settings in JSON types: lists instead of tuples."""
        return dict(json.loads(json.dumps(asdict(self))))


@dataclass(frozen=True)
class RecordedEpisode:
    """A recorded episode: the seed that succeeded, the number of failed tries before, noise on its executed actions."""

    number: int
    seed: int
    failed: int
    noisy: bool = False


def record(settings: RecordingSettings, output_dir: str | Path, workers: int | None = None) -> list[RecordedEpisode]:
    """Record successful demonstrations, or resume an interrupted recording.

    Args:
        settings: what to record.
        output_dir: the dataset's folder.
        workers: number of processes; None: one per core.

    Returns:
        the episodes, in order. Finished episodes are kept.

    Raises:
        UserError: if the folder has other content or cannot be written, or the disk is too small.
    """
    settings.check()
    folder = Path(output_dir)
    if _is_complete(folder, settings):
        return [RecordedEpisode(**entry) for entry in json.loads((folder / METADATA).read_text())["episodes"]]
    check_writable(folder)
    done = _continue_or_begin(folder, settings)
    missing = [number for number in range(settings.episodes) if number not in done]
    workers = min(workers or usable_cores(), max(1, len(missing)))
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(settings, folder)
    )
    others = multiprocessing.active_children()
    with progress_bar(f"recording {settings.task}", settings.episodes, len(done)) as progress:
        try:
            for result in as_completed([pool.submit(_record_episode, number) for number in missing]):
                episode = result.result()
                done[episode.number] = episode
                _write_journal(folder, settings, done)
                progress.advance()
        except BaseException:
            for worker in set(multiprocessing.active_children()).difference(others):
                worker.kill()  # its episode is not in the journal, and is recorded anew
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    _complete(folder, settings, done)
    return [done[number] for number in range(settings.episodes)]


def _is_complete(folder: Path, settings: RecordingSettings) -> bool:
    """Whether the folder contains the dataset with these settings; any other one is refused."""
    if (folder / JOURNAL).exists() or not (folder / OBSERVATIONS).exists():
        return False
    found: dict[str, Any] = {}
    if (folder / METADATA).exists():
        found = json.loads((folder / METADATA).read_text()).get("settings", {})
    _refuse_other(folder, found, settings)
    return True


def _continue_or_begin(folder: Path, settings: RecordingSettings) -> dict[int, RecordedEpisode]:
    journal = folder / JOURNAL
    if journal.exists():
        content = json.loads(journal.read_text())
        _refuse_other(folder, content["settings"], settings)
        return {entry["number"]: RecordedEpisode(**entry) for entry in content["episodes"]}
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder.resolve()} is not empty and contains no recording: choose another --output_dir")
    _allocate(folder, settings)
    _write_journal(folder, settings, {})
    return {}


def _refuse_other(folder: Path, found: dict[str, Any], settings: RecordingSettings) -> None:
    wanted = settings.as_json()
    usual = {field.name: field.default for field in fields(RecordingSettings)}
    for name, value in wanted.items():
        there = found.get(name, usual[name])
        if there != value:
            raise UserError(
                f"{folder.resolve()} contains a dataset with other settings ({name} is {there}, "
                f"not {value}): choose another --output_dir"
            )


def _allocate(folder: Path, settings: RecordingSettings) -> None:
    """Create the arrays in full size, so that a full disk is detected first."""
    needed = settings.steps * (settings.dtype.itemsize + 4 * len(settings.found.action_names))
    parent = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f"the dataset needs {needed / 1e9:.1f} GB and {parent} has {free / 1e9:.1f} GB free: "
            "record fewer episodes or cameras, or a smaller --image_size"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, dtype, shape in (
        (OBSERVATIONS, settings.dtype, (settings.steps,)),
        (ACTIONS, np.dtype(np.float32), (settings.steps, len(settings.found.action_names))),
    ):
        np.lib.format.open_memmap(folder / (name + PARTIAL), "w+", dtype, shape).flush()


def _write_journal(folder: Path, settings: RecordingSettings, done: dict[int, RecordedEpisode]) -> None:
    episodes = [asdict(done[number]) for number in sorted(done)]
    write_json(folder / JOURNAL, {"settings": settings.as_json(), "episodes": episodes})


def _complete(folder: Path, settings: RecordingSettings, done: dict[int, RecordedEpisode]) -> None:
    """Rename the arrays. The journal is removed last, so that the next call resumes after a kill."""
    task = settings.found
    lengths = np.full(settings.episodes, task.episode_steps, dtype=np.int64)
    with (folder / (LENGTHS + PARTIAL)).open("wb") as file:
        np.save(file, lengths)
    metadata = {
        "fps": task.fps,
        "cameras": list(settings.cameras),
        "joint_names": list(task.action_names),
        **({} if task.state_names == task.action_names else {"state_names": list(task.state_names)}),
        "task": settings.task,
        "settings": settings.as_json(),
        "episodes": [asdict(done[number]) for number in range(settings.episodes)],
    }
    write_json(folder / METADATA, metadata)
    for name in (OBSERVATIONS, ACTIONS, LENGTHS):
        partial = folder / (name + PARTIAL)
        if partial.exists():
            flush_to_disk(partial)
            partial.replace(folder / name)
    (folder / JOURNAL).unlink()
    flush_to_disk(folder)


_worker: _Worker


def _start_worker(settings: RecordingSettings, folder: Path) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all processes; the main one ends them
    threading.Thread(target=_end_with_main_process, daemon=True).start()
    _worker = _Worker(settings, folder)


def _end_with_main_process() -> None:
    """A killed main process ends nothing: without this, its workers would wait for episodes for ever."""
    main_process = multiprocessing.parent_process()
    assert main_process is not None
    main_process.join()
    os._exit(1)


def _record_episode(number: int) -> RecordedEpisode:
    return _worker.record_episode(number)


class _Worker:
    """The state of a recording process: environment and demonstrator, and the arrays for its episodes."""

    def __init__(self, settings: RecordingSettings, folder: Path) -> None:
        self.settings = settings
        task = settings.found
        self.steps = task.episode_steps
        changes: dict[str, Any] = {}
        if settings.randomize:
            changes = {"perturb": settings.randomize, "randomized": True, "randomize_steps": settings.randomize_steps}
        self.environment = task.environment(settings.cameras, settings.image_size, **changes)
        self.demonstrate = task.demonstrator()
        self.observations = np.lib.format.open_memmap(folder / (OBSERVATIONS + PARTIAL), "r+")
        self.actions = np.lib.format.open_memmap(folder / (ACTIONS + PARTIAL), "r+")

    def record_episode(self, number: int) -> RecordedEpisode:
        rows = slice(number * self.steps, (number + 1) * self.steps)
        failed, noisy = 0, self.settings.is_noisy(number)
        while True:
            scene = failed // _DRAWS if noisy else failed
            seed = self.settings.seed + number + scene * _NEXT_TRY
            if self._succeeds(seed, rows, failed if noisy else None):
                break
            failed += 1
        self.observations.flush()
        self.actions.flush()
        return RecordedEpisode(number, seed, failed, noisy)

    def _succeeds(self, seed: int, rows: slice, draw: int | None) -> bool:
        """Record one try; `draw` is the number of the noise on the executed actions, None for none."""
        environment = self.environment
        actions = executed = self.demonstrate(seed, self.settings.noise).astype(np.float32)
        if draw is not None:
            names, fps = environment.task.action_names, environment.task.fps
            noise = action_noise(names, len(actions), fps, np.random.default_rng([seed, draw]))
            executed = (actions + self.settings.action_noise * noise).astype(np.float32)
            environment.reset(seed=seed)
            for action in executed:
                environment.advance(action)
            if not environment.is_success:  # without rendering
                return False
        self.actions[rows] = actions
        observations = self.observations[rows]
        observation, _ = environment.reset(seed=seed)
        for step, action in enumerate(executed):
            for name, value in observation.items():
                observations[name][step] = value
            environment.advance(action)
            if step + 1 < self.steps:
                observation = environment.observe()
        return environment.is_success


def action_noise(names: Sequence[str], steps: int, fps: float, generator: np.random.Generator) -> np.ndarray:
    """Smooth noise on executed actions, so that demonstrations contain recoveries from deviations.

    The noise is added to the executed, not to the recorded actions: these remain the demonstrator's corrective ones
    (DART, Laskey et al. 2017, arXiv:1703.09327). It is an Ornstein-Uhlenbeck process of 0.25 s
    that begins at 0; grippers (dimensions with `gripper` in their names) have none.

    Returns:
        (steps, A) with a standard deviation of 1 after the first half second.
    """
    kept = np.exp(-1 / (fps * _CORRELATION))
    drawn = np.sqrt(1 - kept**2) * generator.standard_normal((steps, len(names)))
    noise = np.zeros((steps, len(names)))
    for step in range(1, steps):
        noise[step] = kept * noise[step - 1] + drawn[step]
    noise[:, ["gripper" in name.lower() for name in names]] = 0
    return noise
