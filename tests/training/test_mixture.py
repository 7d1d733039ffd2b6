"""Several datasets in one training: one after the other, drawn by weight, compared, each with errors of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset

from bimact.config import Config
from bimact.data.episodes import JoinedRows
from bimact.data.normalize import compute_statistics
from bimact.data.windows import split_episodes
from bimact.errors import UserError
from bimact.evaluation.offline import evaluate_offline
from bimact.evaluation.report import write_report
from bimact.policy.loading import load_run
from bimact.run_directory import read_dataset_record, read_metrics
from bimact.training.act_trainer import act_losses, train_run
from bimact.training.demonstrations import Demonstrations
from bimact.training.mixture import open_training_data, training_weights
from bimact.training.prepare import prepare_run


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two datasets of one robot, whose cameras have other names."""
    first = write_dataset(tmp_path / "cube", [9, 12, 7, 10])
    second = write_dataset(tmp_path / "peg", [8, 11, 6], seed=1, cameras=("cam_l", "cam_r"))
    return first, second


def items(two: tuple[Path, Path], **of_second: Any) -> list[dict[str, Any]]:
    return [{"path": str(two[0])}, {"path": str(two[1]), "cameras": ["right=cam_r", "left=cam_l"], **of_second}]


def mixed(datasets: list[dict[str, Any]], tmp_path: Path, **changes: Any) -> Config:
    return tiny_config(datasets=datasets, output_dir=str(tmp_path / "run"), **changes)


def opened(config: Config) -> tuple[Demonstrations, list[str]]:
    lines: list[str] = []
    episodes, _ = open_training_data(config, lines.append)
    return Demonstrations.split(episodes, config), lines


def test_rows_of_parts_are_those_of_one_array() -> None:
    draw = np.random.default_rng(0)
    parts = [draw.normal(size=(count, 3)).astype(np.float32) for count in (4, 1, 7)]
    rows, whole = JoinedRows(tuple(parts)), np.concatenate(parts)
    for chosen in (np.array([11, 0, 4, 5, 4]), slice(2, 9), 5, np.array([[0, 11], [5, 3]]), np.zeros(0, int)):
        assert np.array_equal(rows[chosen], whole[chosen])
    assert rows.shape == whole.shape and rows.dtype == np.float32 and len(rows) == 12


def test_datasets_follow_one_another_with_common_cameras(two: tuple[Path, Path], tmp_path: Path) -> None:
    data, lines = opened(mixed(items(two), tmp_path))
    episodes = data.episodes
    assert episodes.lengths.tolist() == [9, 12, 7, 10, 8, 11, 6] and episodes.cameras == ("left", "right")
    records = np.load(two[1] / "observations.npy")
    assert np.array_equal(episodes.images["left"][np.arange(38, 63)], records["image_cam_l"])
    assert np.array_equal(episodes.images["right"][np.arange(38, 63)], records["image_cam_r"])
    assert np.array_equal(episodes.state[slice(38, 63)], records["state"])
    assert np.array_equal(episodes.actions[slice(38, 63)], np.load(two[1] / "actions.npy"))
    assert "  Renamed:  cam_r is right, cam_l is left" in lines
    rows = [episodes.rows_of(number) for number in data.train_episodes]
    expected = compute_statistics([np.asarray(episodes.actions[part]) for part in rows])
    assert np.array_equal(data.statistics(tiny_config())[1].mean, expected.mean)
    with_one = [(split_episodes([0] * count, 0.25, 0), offset) for count, offset in ((4, 0), (3, 4))]
    assert data.train_episodes.tolist() == [n + offset for (train, _), offset in with_one for n in train]
    assert list(data.validation_parts) == ["cube", "peg"]


@pytest.mark.parametrize("weights", [None, (3.0, 1.0), (None, 2.5)])
def test_shares_of_an_epoch(two: tuple[Path, Path], tmp_path: Path, weights: tuple[Any, Any] | None) -> None:
    datasets = items(two)
    for item, weight in zip(datasets, weights or ()):
        item["weight"] = weight
    config = mixed(datasets, tmp_path)
    prepared = prepare_run(config)
    index, order = prepared.data.training.index, prepared.order
    drawn = np.zeros(2)
    for order.epoch in range(300):
        for windows in order:
            np.add.at(drawn, (index.rows[windows] >= 38).astype(int), 1)
    counts = np.array([(index.rows < 38).sum(), (index.rows >= 38).sum()])
    shares = counts if weights is None else np.array([weight or 1.0 for weight in weights])
    assert drawn / drawn.sum() == pytest.approx(shares / shares.sum(), rel=0.01)


def test_sample_weights_count_within_a_dataset(two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(json.dumps({"0": 100, "1": 300, "2": 0}))
    config = mixed(items(two, sample_weights=str(tmp_path / "w.json")), tmp_path, val_split=0)
    data, _ = opened(config)
    weights = training_weights(data, config)
    assert weights is not None and len(weights) == 38 + 19
    assert weights[:38].tolist() == [1] * 38
    assert weights[38:46].sum() / weights[46:].sum() == pytest.approx(8 * 100 / (11 * 300))
    assert weights[38:].sum() == pytest.approx(19)


def test_a_higher_frame_rate_is_resampled(two: tuple[Path, Path], tmp_path: Path) -> None:
    (two[1] / "metadata.json").write_text('{"fps": 25}')
    data, lines = opened(mixed(items(two), tmp_path))
    assert data.episodes.fps == 25 and data.episodes.lengths.tolist() == [5, 6, 4, 5, 8, 11, 6]
    assert any("resampled: recorded at 50" in line for line in lines)
    (two[1] / "metadata.json").unlink()
    data, lines = opened(mixed(items(two), tmp_path))
    assert data.episodes.fps == 50
    assert "  Note:     the files do not tell the control frequency: taken as 50 Hz" in lines


def test_what_differs_is_told_in_a_table(two: tuple[Path, Path], tmp_path: Path) -> None:
    names = [f"joint_{number}" for number in range(14)]
    (two[0] / "metadata.json").write_text(json.dumps({"fps": 50, "joint_names": names}))
    odd = write_dataset(tmp_path / "odd", [5, 5], size=(8, 24), dim=13, cameras=("left", "top"))
    with pytest.raises(UserError) as caught:
        opened(mixed([{"path": str(two[0])}, {"path": str(odd)}], tmp_path))
    _, *table = str(caught.value).splitlines()
    assert table == [
        "                     cube         odd",
        "  state dimensions   14           13",
        "  action dimensions  14           13",
        "  cameras            left, right  left, top",
        "  camera left        16x24        8x24",
    ]
    other = [*names[:3], "wrist", *names[4:]]
    (two[1] / "metadata.json").write_text(json.dumps({"fps": 50, "joint_names": other}))
    with pytest.raises(UserError, match=r"action dimension 3  joint_3  wrist$"):
        opened(mixed(items(two), tmp_path))
    data, _ = opened(mixed(items(two, ignore_names=True), tmp_path))
    assert data.episodes.joint_names == tuple(names)


def test_faulty_entries_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="datasets: peg has no camera 'top' among its cameras"):
        opened(mixed(items(two), tmp_path, cameras=["top"]))
    with pytest.raises(UserError, match=r"item 2 of setting 'datasets': no key named 'wieght'; did you mean 'weight'"):
        mixed(items(two, wieght=2), tmp_path)
    with pytest.raises(UserError, match="item 2 of setting 'datasets': weight is 0, it has to be a number above 0"):
        mixed(items(two, weight=0), tmp_path)
    with pytest.raises(UserError, match="both dataset_dir and datasets are set"):
        mixed(items(two), tmp_path, dataset_dir=str(two[0]))


def test_losses_and_errors_of_each_dataset(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on two datasets, from a list and from `a,b`: validation, evaluation and report tell them apart."""
    write_dataset(two[1], [8, 11, 6], seed=1)  # with the cameras' common names
    given = tiny_config(dataset_dir=f"{two[0]},{two[1]}", output_dir=str(tmp_path / "run"))
    trainer = train_run(prepare_run(given))
    printed = capsys.readouterr().out
    rows = trainer.data.training.index.rows
    share = f"{(rows < 38).sum()} training samples, {(rows < 38).mean():.1%} of an epoch, drawn 1 times on average"
    assert f"Mixture: cube: {share}" in printed
    last = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in record][-1]
    for name, windows in trainer.data.validation_parts.items():
        obs, actions = windows.__getitems__(range(len(windows)))
        policy = trainer.unwrapped_policy.eval()
        with torch.no_grad():
            output = policy(obs)[1]
            target = policy.normalized(actions, obs)
            loss = act_losses(output, target, obs["action_is_pad"], trainer.config).action
        assert last[f"val_loss/{name}"] == pytest.approx(loss.item(), rel=1e-4)
    record = read_dataset_record(tmp_path / "run" / "metrics.jsonl")
    assert record is not None and record["episodes"] == 7 and list(record["datasets"]) == ["cube", "peg"]

    loaded = load_run(tmp_path / "run", "last")
    found = evaluate_offline(loaded)
    each, total = found["datasets"], found["windows"]
    assert found["mae"] != pytest.approx(each["cube"]["mae"])
    assert total == sum(of["windows"] for of in each.values())
    for name, dataset in zip(("cube", "peg"), two):
        alone = evaluate_offline(loaded, name)
        assert Path(alone["dataset"]) == dataset and alone["episodes"] == "all"
    alone = evaluate_offline(loaded, str(two[1]), episodes=["0"])
    assert alone["episode_numbers"] == [0] and alone["windows"] == 8
    with pytest.raises(UserError, match="give --dataset_dir as well, one of cube, peg, or a path"):
        evaluate_offline(loaded, episodes=["0"])
    prepare_run(load_run(tmp_path / "run", "last").config, tmp_path / "run")  # resumes
    assert "cube" in Path(write_report(tmp_path / "run")).read_text()
