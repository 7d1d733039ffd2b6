"""What is wrong with a dataset, in words that say what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bimact.config import Config
from bimact.data.conversion import CACHE
from bimact.data.episodes import Episodes, Rows
from bimact.data.findings import DatasetReport, Findings
from bimact.data.formats import open_dataset
from bimact.data.guide_inspection import Parts, inspect_guide_npy
from bimact.data.guide_npy import ACTIONS, is_guide_npy
from bimact.data.observations import LENGTHS, OBSERVATIONS, episode_and_step
from bimact.data.value_warnings import Files, note_odd_values
from bimact.errors import UserError
from bimact.progress import progress_bar

_BLOCK_ROWS = 1 << 16
_GUIDE_ACTION_DIM = 14  # two arms of six joints and a gripper


def check_dataset(path: str | Path, config: Config | None = None, cache_dir: str | Path | None = None) -> DatasetReport:
    """Look through a whole dataset for everything that is wrong with it, or may be.

    In the guide's format each fault is found, and nothing is written. Other formats are looked through once they can
    be opened.

    Args:
        path: the dataset's folder.
        config: the training's settings, which the dataset has to fit; None: the defaults.
        cache_dir: where a converted copy goes, if another format needs one.

    Raises:
        UserError: if there is no dataset, or one in another format cannot be opened or read.
    """
    path = Path(path).absolute()
    findings = Findings(path)
    if is_guide_npy(path):
        files = Files(LENGTHS, OBSERVATIONS, ACTIONS)
        parts = inspect_guide_npy(path, findings)
        episodes = None if findings.has_faults else parts.as_episodes(path)
    else:
        files = Files(path.name, path.name, path.name)
        episodes = open_dataset(path, cache_dir=cache_dir)
        findings.lengths = episodes.lengths
        parts = Parts.of(episodes)
    _compare_with_config(parts, config, files, findings)
    _note_nonfinite(parts, files, findings)
    if episodes is not None:
        note_odd_values(episodes, (config or Config()).chunk_size, files, findings)
    return DatasetReport(path, findings.listed(), episodes, _size_on_disk(path))


def _compare_with_config(parts: Parts, config: Config | None, files: Files, findings: Findings) -> None:
    """See that training with a config would take the dataset; without a config, say what the default one lacks."""
    action_dim = None if parts.actions is None else parts.actions.shape[1]
    if config is None:
        if action_dim not in (None, _GUIDE_ACTION_DIM):
            sentence = f"an action has {action_dim} values, two arms usually have {_GUIDE_ACTION_DIM}"
            advice = f"if that is right, train with --action_dim {action_dim}"
            findings.add(files.actions, f"{files.actions}: {sentence}; {advice}", is_fault=False)
        return
    state_dim = None if parts.state is None else parts.state.shape[1]
    for name, wanted, found, file in (
        ("action_dim", config.action_dim, action_dim, files.actions),
        ("state_dim", config.state_dim, state_dim, files.observations),
    ):
        if None not in (wanted, found) and wanted != found:
            advice = f"set {name} to {found} or record again"
            findings.add(file, f"{file}: {name} is {wanted} in the config, but the dataset has {found}; {advice}")
    for camera in config.cameras or ():
        if parts.images and camera not in parts.images:
            sentence = f"has no camera '{camera}', which the config wants; it has {', '.join(parts.images)}"
            findings.add(files.observations, f"{files.observations} {sentence}")


def _note_nonfinite(parts: Parts, files: Files, findings: Findings) -> None:
    """Name each episode with a state or action that is NaN or infinite."""
    sources = [
        (what, rows, file)
        for what, rows, file in (("state", parts.state, files.observations), ("action", parts.actions, files.actions))
        if rows is not None
    ]
    with progress_bar("looking for NaN", sum(len(rows) for _, rows, _ in sources)) as progress:
        for what, rows, file in sources:
            problems: dict[int, str] = {}
            for begin in range(0, len(rows), _BLOCK_ROWS):
                values = rows[begin : begin + _BLOCK_ROWS]
                is_finite = np.isfinite(values)
                for row in np.flatnonzero(~is_finite.all(axis=1)).tolist():
                    number = int(np.argmin(is_finite[row]))
                    found = f"has {values[row, number]} as {what}[{number}], which training cannot take"
                    problems[begin + row] = f"{found}; mend or remove the episode"
                progress.advance(len(values))
            findings.add_steps(file, problems)


def _size_on_disk(path: Path) -> int:
    """Bytes of a dataset without its converted copies."""
    files = [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files if CACHE not in file.relative_to(path).parts)


def refuse_nonfinite(episodes: Episodes) -> None:
    """See that training will meet no NaN.

    Raises:
        UserError: naming the first step with a state or action that is NaN or infinite.
    """
    found = find_nonfinite(episodes)
    if found is not None:
        episode, step, what = found
        raise UserError(
            f"{episodes.path}: {what} of episode {episode}, step {step} holds NaN or an infinite value: "
            "mend or remove the episode"
        )


def find_nonfinite(episodes: Episodes) -> tuple[int, int, str] | None:
    """Look through all states and actions for values that are NaN or infinite, in blocks of rows.

    Returns:
        the first step with such a value: (episode, step in it, "state" or "actions"); None: all are finite.
    """
    for begin in range(0, episodes.num_steps, _BLOCK_ROWS):
        found = [
            (begin + int(np.argmin(is_good)), what)
            for what, source in (("state", episodes.state), ("actions", episodes.actions))
            if not (is_good := _all_finite(source, begin)).all()
        ]
        if found:
            row, what = min(found, key=lambda entry: entry[0])
            return *episode_and_step(row, episodes.lengths), what
    return None


def _all_finite(source: Rows, begin: int) -> np.ndarray:
    """(B,) bool of a block of rows (N, D)."""
    return np.isfinite(source[begin : begin + _BLOCK_ROWS]).all(axis=1)
