"""How often samples are drawn: by a column, by a file with a number per episode, not while idle, not of failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from guide_files import write_dataset
from hdf5_files import aloha_columns, write_aloha_episode

from bimact.data.sample_weights import still_ends
from bimact.errors import UserError
from bimact.training.demonstrations import Demonstrations, open_demonstrations
from bimact.training.prepare import prepare_run


def opened(path: Path, tmp_path: Path, **changes: Any) -> tuple[Demonstrations, list[str], list[str]]:
    """The demonstrations, what was printed, and the names of the episodes that are left."""
    lines: list[str] = []
    config = tiny_config(cache_dir=str(tmp_path / "cache"), **changes)
    episodes, source = open_demonstrations(config, path, lines.append)
    return Demonstrations.split(episodes, config), lines, [episode.name for episode in source.episodes]


@pytest.fixture
def aloha(tmp_path: Path) -> Path:
    """Three episodes with a column `quality`; the second one is marked as failed."""
    for number, length in enumerate((6, 4, 5)):
        quality = {"quality": np.arange(length)[:, None] + 10.0 * number}
        columns = {**aloha_columns(length, seed=number), **quality}
        attributes = {"success": number != 1}
        write_aloha_episode(tmp_path / f"aloha/episode_{number}.hdf5", length, columns=columns, attributes=attributes)
    return tmp_path / "aloha"


def test_a_column_weighs_each_step(aloha: Path, tmp_path: Path) -> None:
    data, lines, _ = opened(aloha, tmp_path, sample_weights="quality", val_split=0)
    weights = data.episodes.weights
    assert weights is not None
    assert weights.tolist() == [*range(6), *range(10, 14), *range(20, 25)]
    assert len(data.training) == 14  # the first step's weight is 0
    assert "Note:     sample weights by quality: from 0 to 24; 1 of 15 samples have weight 0" in "\n".join(lines)
    of_episode, _, _ = opened(aloha, tmp_path, sample_weights="quality@episode")
    assert of_episode.episodes.weights is not None
    assert of_episode.episodes.weights.tolist() == [5] * 6 + [13] * 4 + [24] * 5


def test_a_resampled_column_keeps_its_steps(aloha: Path, tmp_path: Path) -> None:
    data, _, _ = opened(aloha, tmp_path, sample_weights="quality", fps=25)  # recorded at 50
    assert data.episodes.weights is not None
    assert data.episodes.weights.tolist() == [0, 2, 4, 10, 12, 20, 22, 24]


@pytest.mark.parametrize(
    ("name", "text"),
    [("w.csv", "episode,weight\n0,2\nepisode_2.hdf5,0\n"), ("w.json", '{"0": 2, "episode_2.hdf5": 0}')],
)
def test_a_file_weighs_episodes(aloha: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    data, lines, names = opened(aloha, tmp_path, sample_weights=str(tmp_path / name), val_split=0)
    assert names == ["episode_0.hdf5", "episode_1.hdf5"] and data.episodes.lengths.tolist() == [6, 4]
    assert data.episodes.weights is not None and data.episodes.weights.tolist() == [2] * 6 + [1] * 4
    assert "Skipped:  episode_2.hdf5: its samples have weight 0" in lines
    assert any("1 of 3 episodes are not named and have weight 1" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"7": 1}', "sample_weights: .* has no episode '7'; it has episodes 0 to 2"),
        ('{"0": -1}', "episode_0.hdf5, step 0 has the weight -1, it has to be 0 or more"),
        ('{"0": "much"}', "gives episode 0 the weight 'much', not a number"),
        ("[1, 2]", 'has to hold {"episode": weight, ...}'),
        ("{", "cannot be read"),
        ('{"0": 0, "1": 0, "2": 0}', "all weights are 0, so that no sample is left"),
    ],
)
def test_a_faulty_file_is_refused(aloha: Path, tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        opened(aloha, tmp_path, sample_weights=str(tmp_path / "w.json"))


def test_a_column_of_several_numbers_is_refused(aloha: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="qvel: it has 14 numbers per step, it has to have one"):
        opened(aloha, tmp_path, sample_weights="qvel")
    with pytest.raises(UserError, match="has no column 'qality'.*did you mean 'quality'"):
        opened(aloha, tmp_path, sample_weights="qality")


def test_failed_episodes_are_told_and_left_out(aloha: Path, tmp_path: Path) -> None:
    _, lines, names = opened(aloha, tmp_path)
    note = "1 of 3 episodes are marked as failed and are used: --skip_failed true leaves them out"
    assert len(names) == 3 and f"Note:     {note}" in lines
    _, lines, names = opened(aloha, tmp_path, skip_failed=True)
    assert names == ["episode_0.hdf5", "episode_2.hdf5"]
    assert "Skipped:  episode_1.hdf5: it is marked as failed" in lines and not any(note in line for line in lines)


def still_steps(values: np.ndarray, scale: np.ndarray) -> list[int]:
    """Slowly, step by step: those whose whole past, or whole future, is within 2% of the spans; but one at each end."""

    def near(a: np.ndarray, b: np.ndarray) -> bool:
        return bool(np.sqrt(np.mean(((a - b) / scale) ** 2)) <= 0.02)

    count = len(values)
    head = [t for t in range(count) if all(near(values[s], values[0]) for s in range(t + 1))]
    tail = [t for t in range(count) if all(near(values[s], values[-1]) for s in range(t, count))]
    return sorted({*head[:-1], *tail[1:]})


@pytest.mark.parametrize(("head", "tail"), [(0, 0), (1, 1), (7, 0), (5, 9), (0, 4)])
def test_still_ends_against_a_plain_search(head: int, tail: int) -> None:
    draw = np.random.default_rng(head + 10 * tail)
    moving = np.cumsum(draw.uniform(0.05, 0.1, (12, 3)), axis=0)
    values = np.concatenate([np.repeat(moving[:1], head, 0), moving, np.repeat(moving[-1:], tail, 0)])
    values += draw.normal(scale=1e-3, size=values.shape)
    scale = np.ptp(values, axis=0)
    found = still_ends([(values, scale)])
    expected = still_steps(values, scale)
    assert [*range(found[0]), *range(len(values) - found[1], len(values))] == expected
    assert found == (head, tail)


def test_still_samples_and_still_episodes_are_left_out(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [20, 20, 20])
    records, actions = np.load(dataset / "observations.npy"), np.load(dataset / "actions.npy")
    for values in (records["state"], actions):
        values[:8] = values[8]  # the first episode begins at its ninth step
        values[20:40] = values[20]  # the second does not move
    np.save(dataset / "observations.npy", records)
    np.save(dataset / "actions.npy", actions)
    data, lines, names = opened(dataset, tmp_path, skip_idle=True, val_split=0)
    assert names == ["episode 0", "episode 2"]
    assert data.training.index.rows.tolist() == [*range(8, 20), *range(20, 40)]
    assert "Note:     skip_idle leaves out 28 of 60 samples: 28 at the beginning" in "\n".join(lines)
    held_out, _, _ = opened(dataset, tmp_path, skip_idle=True, val_split=0.5)
    assert held_out.validation is not None and len(held_out.validation) + len(held_out.training) == 32


def test_other_weights_need_override(tmp_path: Path) -> None:
    """Of a file that was changed since: its name in the settings is the same."""
    write_dataset(tmp_path / "dataset", [9, 12, 7, 10])
    weights = tmp_path / "w.json"
    config = tiny_config(
        dataset_dir=str(tmp_path / "dataset"), output_dir=str(tmp_path / "run"), sample_weights=str(weights)
    )
    weights.write_text(json.dumps({"0": 2}))
    first = prepare_run(config).data.episodes.fingerprint
    weights.write_text(json.dumps({"0": 3}))
    assert prepare_run(config).data.episodes.fingerprint != first
